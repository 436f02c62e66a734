from __future__ import annotations

import torch
from torch import nn

from stabilitylab.config import resolve
from stabilitylab.methods import build_method
from stabilitylab.models.layers import depth_order, group_layers, layer_name, names_tell_the_order


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


def nested(*names: str) -> list[str]:
    return [layer.name for layer in group_layers([(name, nn.Parameter(torch.zeros(2))) for name in names])]


def test_a_network_inside_another_module_keeps_its_first_layer() -> None:
    from timm.models.vision_transformer import VisionTransformer

    lightning = nn.ModuleDict({"model": VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2)})
    layers = group_layers(lightning.named_parameters())
    expected = ["patch_embed", "tokens", "blocks.0", "blocks.1", "norm", "head"]
    assert [layer.name for layer in layers] == [f"model.{name}" for name in expected]
    assert names_tell_the_order([layer.name for layer in layers])


def test_a_hugging_face_vit_has_embeddings_first() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=16)
    names = [layer.name for layer in group_layers(ViTForImageClassification(config).named_parameters())]
    assert names[0] == "vit.embeddings"
    assert names[-2:] == ["vit.layernorm", "classifier"]
    assert len(names) == 5


def test_what_everything_is_in_names_no_layer() -> None:
    assert nested("model.fc1.weight", "model.fc1.bias", "model.fc2.weight") == ["model.fc1", "model.fc2"]
    assert nested("0.patch_embed.proj.weight", "0.blocks.0.w", "0.blocks.1.w")[0] == "0.patch_embed"
    assert nested("net.0.weight", "net.2.weight") == ["net.0", "net.2"]
    assert nested("head.weight", "head.bias") == ["head"]
    assert nested("projector.0.weight", "projector.3.weight") == ["projector"]


def test_a_head_in_a_network_stays_one_layer() -> None:
    names = nested("net.blocks.0.w", "net.projector.layers.0.w", "net.projector.layers.2.w", "net.cls_token")
    assert names == ["net.tokens", "net.blocks.0", "net.projector"]


def test_a_convolution_inside_a_block_is_not_taken_for_the_first() -> None:
    assert depth_order(["stem", "layer1.0.conv1", "layer1.0.conv2"]) == ["stem", "layer1.0.conv1", "layer1.0.conv2"]
    assert not names_tell_the_order(["layer1.0.conv1", "head"])
