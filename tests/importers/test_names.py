"""What a series is by its name, over the names that real tools write."""

from __future__ import annotations

import pytest

from stabilitylab.importers import names
from stabilitylab.importers.layers import depth_order, group_parameters


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("grad_norm/blocks.0", "blocks.0"),
        ("train/grad_norm/blocks.0", "blocks.0"),
        ("gradients/patch_embed.proj.weight", "patch_embed.proj.weight"),
        ("gradients/norm.weight", "norm.weight"),
        ("grad/blocks.1", "blocks.1"),
        ("grad_norm_blocks.0", "blocks.0"),
        ("grad_2.0_norm/net.norm.weight", "net.norm.weight"),
        ("grad_2.0_norm_net.norm.weight_step", "net.norm.weight"),
        ("l2_norm/grad/transformer.blocks.0.weight", "transformer.blocks.0.weight"),
    ],
)
def test_layers(name: str, layer: str) -> None:
    assert names.total_section(name) is None
    assert not names.is_statistic(name)
    assert names.layer_of(name) == layer


@pytest.mark.parametrize(
    "name",
    ["grad_norm", "train/grad_norm", "grad-norm", "grad-norm/grad-norm", "grad norm", "gnorm", "gradient_norm",
     "grad_2.0_norm_total",
     "grad_2.0_norm_total_step", "optim/total_grad_norm", "global_grad_norm", "train/grad_norm_step"],
)  # fmt: skip
def test_totals(name: str) -> None:
    assert names.total_section(name) is not None


@pytest.mark.parametrize(
    "name",
    ["grad_norm_max", "grad_norm/mean", "max_grad_norm", "train/grad_norm_avg", "grad_norm/min", "avg_grad_norm",
     "grad_norm_average", "grad_norm/p95"],
)  # fmt: skip
def test_minima_maxima_and_means_are_no_layers(name: str) -> None:
    assert names.is_statistic(name)


@pytest.mark.parametrize(
    "name", ["grad_scale", "gradients/noise_scale", "grad_norm_clipped", "weight_norm/a", "grad_norm_epoch"]
)
def test_neither(name: str) -> None:
    assert names.total_section(name) is None
    assert names.layer_of(name) is None


def test_axes_and_maxima() -> None:
    assert names.is_axis("grad-norm/grad-norm vs samples")
    assert names.is_axis("grad-norm vs tokens")
    assert not names.is_axis("loss")
    assert names.maximum_of("grad_max/blocks.0") == "blocks.0"
    assert names.maximum_of("grad_inf_norm/a.weight") == "a.weight"


@pytest.mark.parametrize(
    ("name", "metric"),
    [("val_acc1", True), ("val/loss", True), ("eval_accuracy", True), ("validation/accuracy", True), ("knn_top1", True),
     ("test_acc1", True), ("accuracy", True), ("train_acc1", False), ("train/loss", False), ("eval_runtime", False),
     ("eval_samples_per_second", False), ("loss", False), ("epoch", False)],
)  # fmt: skip
def test_metrics_are_evaluations(name: str, metric: bool) -> None:
    assert names.is_metric(name) is metric


@pytest.mark.parametrize(
    ("parameters", "layers"),
    [
        (["net.patch_embed.proj.weight", "net.blocks.0.attn.weight", "net.blocks.1.attn.weight", "net.norm.weight"],
         ["patch_embed", "blocks.0", "blocks.1", "norm"]),
        (["layers.0.blocks.0.mlp.0.weight", "layers.0.blocks.1.mlp.0.weight", "patch_embed.proj.weight", "head.weight"],
         ["patch_embed", "layers.0.blocks.0", "layers.0.blocks.1", "head"]),
        (["layer1.0.conv1.weight", "layer1.1.conv1.weight", "conv1.weight", "fc.weight"],
         ["conv1", "layer1.0", "layer1.1", "fc"]),
        (["transformer.h.0.w.weight", "transformer.h.1.w.weight", "transformer.wte.weight", "lm_head.weight"],
         ["transformer.wte", "transformer.h.0", "transformer.h.1", "lm_head"]),
        (["params/encoder/layer_0/kernel", "params/encoder/layer_1/kernel", "params/head/kernel"],
         ["encoder.layer.0", "encoder.layer.1", "head"]),
        (["0.weight", "0.bias", "2.weight"], ["0", "2"]),
    ],
)  # fmt: skip
def test_parameters_are_grouped_into_blocks(parameters: list[str], layers: list[str]) -> None:
    groups = group_parameters(parameters)
    assert depth_order(list(groups)) == layers
    assert sorted(name for group in groups.values() for name in group) == sorted(parameters)


def test_an_alphabetical_log_is_put_in_the_order_of_the_network() -> None:
    blocks = [f"blocks.{i}" for i in range(12)]
    assert depth_order(sorted(["patch_embed", "norm", "head", *blocks])) == ["patch_embed", *blocks, "norm", "head"]
    assert depth_order(["stem", "z", "a"]) == ["stem", "z", "a"]
