from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from stabilitylab.config import resolve
from stabilitylab.methods import build_method
from stabilitylab.models.layers import depth_order, group_layers


def test_blocks_are_ordered_from_input_to_output() -> None:
    method = build_method(resolve({"model": {"depth": 11}}), channels=1)
    layers = group_layers(method)
    blocks = [f"blocks.{i}" for i in range(11)]
    assert [layer.name for layer in layers] == ["patch_embed", "tokens", *blocks, "norm", "projector", "predictor"]
    assert [layer.depth for layer in layers] == list(range(16))


def test_every_online_parameter_is_in_exactly_one_layer() -> None:
    method = build_method(resolve(), channels=1)
    for granularity in ("param", "module", "block"):
        grouped = [id(p) for layer in group_layers(method, granularity) for p in layer.parameters]
        online = [id(p) for name, p in method.named_parameters() if p.requires_grad]
        assert sorted(grouped) == sorted(online)


def test_a_resnet_starts_with_its_first_convolution() -> None:
    method = build_method(resolve({"model": {"arch": "resnet18"}}), channels=1)
    names = [layer.name for layer in group_layers(method)]
    assert names[:4] == ["conv1", "bn1", "layer1.0", "layer1.1"]
    assert names[-2:] == ["projector", "predictor"]


def names_of(model: nn.Module, granularity: str = "block") -> list[str]:
    return [layer.name for layer in group_layers(model, granularity)]


def test_names_at_each_granularity() -> None:
    method = build_method(resolve({"model": {"depth": 2}}), channels=1)
    assert {"blocks.0", "projector", "tokens"} <= set(names_of(method))
    assert "blocks.0.attn.qkv" in names_of(method, "module")
    assert "blocks.0.attn.qkv.weight" in names_of(method, "param")


def test_a_network_inside_another_module_keeps_its_first_layer() -> None:
    from timm.models.vision_transformer import VisionTransformer

    lightning = nn.ModuleDict({"model": VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2)})
    layers = group_layers(lightning)
    expected = ["patch_embed", "tokens", "blocks.0", "blocks.1", "norm", "head"]
    assert [layer.name for layer in layers] == [f"model.{name}" for name in expected]


def test_a_hugging_face_vit_has_embeddings_first() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=16)
    names = [layer.name for layer in group_layers(ViTForImageClassification(config))]
    assert names[0] == "vit.embeddings"
    assert names[-2:] == ["vit.layernorm", "classifier"]
    assert len(names) == 5


class MLP(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)


class Block(nn.Module):
    """Attention, norm, and an MLP: a block of a transformer without its arithmetic."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(width), nn.Linear(width, 3 * width), MLP(width)


def holding(**children: nn.Module) -> nn.Module:
    return nn.ModuleDict(children)


def blocks(count: int, kind: Callable[[], nn.Module] = Block) -> nn.ModuleList:
    return nn.ModuleList([kind() for _ in range(count)])


def test_what_everything_is_in_names_no_layer() -> None:
    model = holding(model=MLP())
    assert names_of(model) == ["model.fc1", "model.fc2"]
    assert names_of(nn.Sequential(holding(patch_embed=nn.Linear(4, 4), blocks=blocks(2))))[0] == "0.patch_embed"
    assert names_of(holding(net=nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))) == ["net.0", "net.2"]
    assert names_of(holding(head=nn.Linear(4, 4))) == ["head"]
    assert names_of(holding(projector=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))) == ["projector"]


def test_a_head_in_a_network_stays_one_layer() -> None:
    net = holding(blocks=blocks(2), projector=holding(layers=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))))
    net.register_parameter("cls_token", nn.Parameter(torch.zeros(2)))
    outside = nn.Linear(2, 2)
    assert names_of(holding(net=net, outside=outside)) == [
        "net.tokens", "net.blocks.0", "net.blocks.1", "outside", "net.projector",
    ]  # fmt: skip


def test_a_convolution_inside_a_block_is_not_taken_for_the_first() -> None:
    assert depth_order(["stem", "layer1.0.conv1", "layer1.0.conv2"]) == ["stem", "layer1.0.conv1", "layer1.0.conv2"]


def test_the_wrappers_of_fabric_are_no_part_of_a_name() -> None:
    """Fabric stores the module that it wraps twice; with DDP, only the first is inside another wrapper."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    wrapper, ddp = nn.Module(), nn.Module()
    ddp.module = net
    wrapper._forward_module, wrapper._original_module = ddp, net
    assert [layer.name for layer in group_layers(wrapper)] == ["0", "2"]
