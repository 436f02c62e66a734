"""Models and optimizers of other libraries (the extra ``zoo``): layers, order, and norms against autograd."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stabilitylab
from benchmarks.layers import cases
from stabilitylab.store.reader import open_run

pytestmark = pytest.mark.slow
MODELS = [
    "vit_small_patch14_dinov2", "swin_tiny_patch4_window7_224", "convnext_tiny", "pvt_v2_b0", "regnety_002",
    "densenet121",
    "efficientnet_b0", "dla34", "hrnet_w18_small", "torchvision vit_b_16", "transformers GPT-2", "transformers Mixtral",
    "transformers T5",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_the_blocks_in_the_order_of_execution(name: str, tmp_path: Path) -> None:
    _, blocks, layers, merged, split, _, _, inversions, _, error = cases()[name](tmp_path)
    assert blocks <= layers
    assert (merged, split, inversions) == (0, 0, 0)
    assert float(error) < 1e-5


def test_peft_changes_no_layer(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50)
    model = peft.get_peft_model(
        transformers.GPT2LMHeadModel(config), peft.LoraConfig(target_modules=["c_attn"], r=2, fan_in_fan_out=True)
    )
    ids = torch.randint(0, 50, (2, 8))
    with stabilitylab.record(model, run="r", runs_dir=tmp_path) as rec:
        model(input_ids=ids, labels=ids).loss.backward()
        rec.step()
    assert rec.path is not None
    with open_run(rec.path) as reader:
        trained = [row.name for row in reader.layers() if row.trainable]
    assert trained == ["transformer.h.0", "transformer.h.1"]


def of_library(module: str, name: str) -> Callable[[Any], torch.optim.Optimizer]:
    def make(parameters: Any) -> torch.optim.Optimizer:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
        return getattr(importlib.import_module(module), name)(list(parameters), lr=1e-3)  # type: ignore[no-any-return]

    return make


KEEPS = [("schedulefree", "AdamWScheduleFree"), ("pytorch_optimizer", "Lamb"), ("pytorch_optimizer", "AdEMAMix")]
KEEPS += [("torch.optim", "AdamW"), ("torch.optim", "NAdam")]
KEEPS_NOT = [("pytorch_optimizer", "SOAP"), ("pytorch_optimizer", "Lion"), ("lion_pytorch", "Lion")]


def train(make: Callable[[Any], torch.optim.Optimizer], path: Path) -> tuple[np.ndarray, list[float]]:
    """adam_rms of one layer as recorded, and by its formula with the steps counted here."""
    torch.manual_seed(0)
    model = nn.Linear(16, 4, bias=False)
    optimizer = make(model.parameters())
    expected = []
    with stabilitylab.record(model, optimizer, run="r", runs_dir=path, signals=("grad_norm", "adam_rms")) as rec:
        for i in range(20):
            if hasattr(optimizer, "train"):
                optimizer.train()
            model(torch.randn(32, 16)).square().mean().backward()
            g: Tensor = model.weight.grad  # type: ignore[assignment]
            before = optimizer.state.get(model.weight, {}).get("exp_avg_sq", torch.zeros_like(g))
            beta2 = optimizer.param_groups[0]["betas"][1]
            v = (beta2 * before + (1 - beta2) * g**2) / (1 - beta2 ** (i + 1))
            expected.append((g**2 / v.clamp(min=1e-16)).mean().sqrt().item())
            rec.step()
            optimizer.step()
            optimizer.zero_grad()
    assert rec.path is not None
    with open_run(rec.path) as reader:
        return reader.layer_series("adam_rms").get(0, (None, np.full(20, np.nan)))[1], expected


@pytest.mark.parametrize(("module", "name"), KEEPS)
def test_adam_rms_counts_the_steps_where_the_optimizer_does(module: str, name: str, tmp_path: Path) -> None:
    recorded, expected = train(of_library(module, name), tmp_path)
    np.testing.assert_allclose(recorded, expected, rtol=1e-3)


@pytest.mark.parametrize(("module", "name"), KEEPS_NOT)
def test_adam_rms_is_missing_and_says_why(module: str, name: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=f"adam_rms was never measured: {name} keeps"):
        recorded, _ = train(of_library(module, name), tmp_path)
    assert np.isnan(recorded).all()


def small_vit(**options: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.models.VisionTransformer(  # type: ignore[no-any-return]
        img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=0, **options
    )


class LightlyDINO(nn.Module):
    """As in lightly's benchmarks: a teacher that is not frozen, registered first, and a probe on detached features."""

    def __init__(self) -> None:
        super().__init__()
        heads = pytest.importorskip("lightly.models.modules")
        self.backbone = small_vit()
        self.projection_head = heads.DINOProjectionHead(24, 32, 16, 64)
        self.student_backbone = small_vit(dynamic_img_size=True)
        self.student_projection_head = heads.DINOProjectionHead(24, 32, 16, 64)
        self.online_classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.projection_head(self.backbone(x)).softmax(dim=1)
        features = self.student_backbone(x)
        loss = -(target * self.student_projection_head(features).log_softmax(dim=1)).sum(dim=1).mean()
        return loss + self.online_classifier(features.detach()).logsumexp(dim=1).mean()


class LightlyMAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        modules = pytest.importorskip("lightly.models.modules")
        self.backbone = modules.MaskedVisionTransformerTIMM(vit=small_vit())
        self.decoder = modules.MAEDecoderTIMM(
            num_patches=16, patch_size=4, embed_dim=24, decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2,
            mlp_ratio=2.0,
        )  # fmt: skip
        self.online_classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        utils = pytest.importorskip("lightly.models.utils")
        keep, mask = utils.random_token_mask((len(x), 17), mask_ratio=0.75)
        features = self.backbone.encode(images=x, idx_keep=keep)
        full = utils.repeat_token(self.decoder.mask_token, (len(x), 17))
        full = utils.set_at_index(full, keep, self.decoder.embed(features))
        predicted = self.decoder.predict(utils.get_at_index(self.decoder.decode(full), mask))
        loss = (predicted - utils.get_at_index(utils.patchify(x, 4), mask - 1)).square().mean()
        return loss + self.online_classifier(features[:, 0].detach()).logsumexp(dim=1).mean()


@pytest.mark.parametrize(
    ("make", "trained", "first", "last"),
    [
        (LightlyDINO, "student_backbone.blocks.{}", "student_backbone.patch_embed", "student_projection_head"),
        (LightlyMAE, "backbone.vit.blocks.{}", "backbone.vit.patch_embed", "decoder.decoder_pred"),
    ],
)
def test_models_of_lightlys_benchmarks(make: type, trained: str, first: str, last: str, tmp_path: Path) -> None:
    from stabilitylab.run.loading import load_run

    torch.manual_seed(0)
    model = make()
    with stabilitylab.record(model, run="r", runs_dir=tmp_path) as rec:
        for _ in range(4):
            loss = model(torch.randn(4, 3, 16, 16))
            loss.backward()
            rec.step(loss=loss)
            model.zero_grad()
    assert rec.path is not None
    with open_run(rec.path) as reader:
        names = [row.name for row in reader.layers()]
    blocks = [name for name in names if name in [trained.format(i) for i in range(3)]]
    assert blocks == [trained.format(i) for i in range(3)]  # one layer each, in the order of execution
    series = load_run(rec.path).series
    assert "online_classifier" in series.off_path
    on_path = [x.name for x in series.layers if np.isfinite(x.grad_norm).any() and x.name not in series.off_path]
    assert (on_path[0], on_path[-1]) == (first, last)
