"""Initialisation and position embedding against independent formulas (PAPER, Implementation)."""

from __future__ import annotations

import math

import pytest
import torch

from stabilitylab.config import resolve
from stabilitylab.models import build_encoder
from stabilitylab.models.vit import sincos_position_embedding


def test_the_position_embedding_equals_the_formula_entry_by_entry() -> None:
    rows, columns, dim = 3, 4, 16
    table = sincos_position_embedding((rows, columns), dim, prefix_tokens=1)
    assert table.shape == (1, 1 + rows * columns, dim)
    assert not table[0, 0].any()
    for row in range(rows):
        for column in range(columns):
            for i in range(dim // 4):
                angle = 1 / 10_000 ** (i / (dim // 4))
                expected = [
                    math.sin(row * angle),
                    math.cos(row * angle),
                    math.sin(column * angle),
                    math.cos(column * angle),
                ]
                got = table[0, 1 + row * columns + column, i :: dim // 4]
                assert got.tolist() == pytest.approx(expected, abs=1e-6)


def test_initialisation_is_the_papers() -> None:
    torch.manual_seed(0)
    vit = build_encoder(resolve({"model": {"embed_dim": 192, "img_size": 32, "patch_size": 8}}).model, channels=3)
    dim = 192

    def is_uniform(weight: torch.Tensor, bound: float) -> None:
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.98 * bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)

    is_uniform(vit.patch_embed.proj.weight, math.sqrt(6 / (3 * 8 * 8 + dim)))
    assert not vit.patch_embed.proj.bias.any()
    for part in vit.blocks[0].attn.qkv.weight.chunk(3):
        is_uniform(part, math.sqrt(6 / (dim + dim)))
    is_uniform(vit.blocks[0].mlp.fc1.weight, math.sqrt(6 / (dim + 4 * dim)))
    assert not vit.blocks[0].attn.qkv.bias.any()
    assert 0 < vit.cls_token.abs().max() < 1e-5
    assert vit.pos_embed.requires_grad is False


def test_the_papers_small_has_twelve_heads() -> None:
    config = resolve({"model": {"arch": "vit_small_patch16_224"}})
    assert (config.model.img_size, config.model.patch_size) == (224, 16)
    assert config.model.vit_size == (384, 12, 12)


@pytest.mark.parametrize(
    ("pos_embed", "learned"), [("sincos", False), ("learned", True), ("none", None), ("conv", None)]
)
def test_position_embeddings(pos_embed: str, learned: bool | None) -> None:
    vit = build_encoder(resolve({"model": {"pos_embed": pos_embed}}).model, channels=1)
    assert (None if vit.pos_embed is None else vit.pos_embed.requires_grad) is learned


def test_the_convolutional_position_encoding_against_loops() -> None:
    """CPVT (arXiv 2102.10882): after the first block each patch token gets a 3x3 sum over its neighbours, channel by
    channel, zero outside the image; the class token passes through."""
    torch.manual_seed(0)
    vit = build_encoder(resolve({"model": {"pos_embed": "conv", "embed_dim": 16, "depth": 2}}).model, channels=1)
    x = torch.randn(2, 17, 16)
    position = vit.blocks[0].position
    weight, bias = position.conv.weight[:, 0], position.conv.bias
    expected = x.clone()
    for row in range(4):
        for column in range(4):
            total = bias.expand(2, -1).clone()
            for i in range(3):
                for j in range(3):
                    r, c = row + i - 1, column + j - 1
                    if 0 <= r < 4 and 0 <= c < 4:
                        total += weight[:, i, j] * x[:, 1 + 4 * r + c]
            expected[:, 1 + 4 * row + column] += total
    torch.testing.assert_close(position(x), expected)
    assert vit.blocks[1].position is None
    # It is used: the order of the patches, which attention alone cannot see, changes the class token.
    images = torch.randn(2, 1, 16, 16)
    moved = images.roll(4, 3)  # by whole patches
    assert not torch.allclose(vit(images), vit(moved), atol=1e-3)
    vit.blocks[0].position = None
    torch.testing.assert_close(vit(images), vit(moved), atol=1e-5, rtol=1e-5)


def test_a_conv_stem_takes_a_block_s_place_in_deep_encoders_only() -> None:
    sizes = [
        resolve({"model": {"arch": a, "stem": "conv"}}).model.vit_size[1] for a in ("vit_nano", "vit_small", "vit_base")
    ]
    assert sizes == [4, 11, 11]
    assert resolve({"model": {"arch": "vit_small", "stem": "conv", "depth": 12}}).model.vit_size[1] == 12


@pytest.mark.parametrize("pool", ["cls", "avg_ln", "avg"])
def test_pooling_reads_what_it_says(pool: str) -> None:
    torch.manual_seed(0)
    vit = build_encoder(resolve({"model": {"pool": pool}}).model, channels=1).eval()
    images = torch.randn(2, 1, 16, 16)
    tokens = vit.patch_embed(images)
    if pool == "cls":
        tokens = torch.cat([vit.cls_token.expand(2, -1, -1), tokens], 1)
    tokens = vit.blocks(tokens + vit.pos_embed)
    layer_norm = torch.nn.LayerNorm(64, eps=1e-6)  # freshly made: weight 1, bias 0, as at initialisation
    expected = {
        "cls": lambda: layer_norm(tokens)[:, 0],
        "avg_ln": lambda: layer_norm(tokens).mean(1),
        "avg": lambda: tokens.mean(1),
    }[pool]()
    torch.testing.assert_close(vit(images), expected)


def test_vit_bn_replaces_only_the_norm_before_the_mlp() -> None:
    vit = build_encoder(resolve({"model": {"mlp_norm": "bn"}}).model, channels=1)
    assert all(isinstance(block.norm2.bn, torch.nn.BatchNorm1d) for block in vit.blocks)
    assert all(isinstance(block.norm1, torch.nn.LayerNorm) for block in vit.blocks)
    assert vit(torch.randn(3, 1, 16, 16)).shape == (3, 64)


@pytest.mark.parametrize(("arch", "dim"), [("resnet18", 512), ("resnet50", 2048)])
def test_resnets_have_the_same_face(arch: str, dim: int) -> None:
    net = build_encoder(resolve({"model": {"arch": arch, "img_size": 16}}).model, channels=1)
    assert net.num_features == dim
    assert net(torch.randn(2, 1, 16, 16)).shape == (2, dim)
