from __future__ import annotations

from stabilitylab.config import resolve
from stabilitylab.methods import build_method
from stabilitylab.models.layers import group_layers, layer_name


def test_blocks_are_ordered_from_input_to_output() -> None:
    method = build_method(resolve({"model": {"depth": 11}}), channels=1)
    layers = group_layers(method.named_parameters())
    blocks = [f"blocks.{i}" for i in range(11)]
    assert [layer.name for layer in layers] == ["patch_embed", "tokens", *blocks, "norm", "projector", "predictor"]
    assert [layer.depth for layer in layers] == list(range(16))


def test_every_online_parameter_is_in_exactly_one_layer() -> None:
    method = build_method(resolve(), channels=1)
    for granularity in ("param", "module", "block"):
        grouped = [id(p) for layer in group_layers(method.named_parameters(), granularity) for p in layer.parameters]
        online = [id(p) for name, p in method.named_parameters() if p.requires_grad]
        assert sorted(grouped) == sorted(online)


def test_a_resnet_starts_with_its_first_convolution() -> None:
    method = build_method(resolve({"model": {"arch": "resnet18"}}), channels=1)
    names = [layer.name for layer in group_layers(method.named_parameters())]
    assert names[:4] == ["conv1", "bn1", "layer1.0", "layer1.1"]
    assert names[-2:] == ["projector", "predictor"]


def test_names_at_each_granularity() -> None:
    name = "base_encoder.blocks.0.attn.qkv.weight"
    assert layer_name(name, "block") == "blocks.0"
    assert layer_name(name, "module") == "blocks.0.attn.qkv"
    assert layer_name(name, "param") == "blocks.0.attn.qkv.weight"
    assert layer_name("projector.3.weight") == "projector"
    assert layer_name("base_encoder.cls_token") == "tokens"
