"""timm vision transformers as MoCo v3 builds them (PAPER, Implementation; arXiv 2104.02057, section 4)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from stabilitylab.config import ModelConfig

_POOLS: dict[str, dict[str, Any]] = {
    "cls": {"global_pool": "token", "class_token": True},
    "avg_ln": {"global_pool": "avg", "class_token": False, "fc_norm": False, "final_norm": True},
    "avg": {"global_pool": "avg", "class_token": False, "fc_norm": False, "final_norm": False},
}


class TokenBatchNorm(nn.Module):
    """BatchNorm over images and tokens: (N, L, D) -> (N, L, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(dim)  # a submodule, so that it can be converted to SyncBatchNorm

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x.flatten(0, 1)).view_as(x)


class ConvStem(nn.Sequential):
    """A convolutional stem in place of the patch projection (arXiv 2106.14881): 3x3 convolutions of stride 2 with BN
    and ReLU, whose widths double up to ``dim``, then a 1x1 convolution. (N, C, S, S) -> (N, dim, S / patch,
    S / patch)."""

    def __init__(self, channels: int, dim: int, patch: int) -> None:
        steps = patch.bit_length() - 1
        widths = [channels] + [max(dim >> (steps - 1 - i), 8) for i in range(steps)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(widths[-1], dim, 1))


class ConvPosition(nn.Module):
    """Conditional position encoding (arXiv 2102.10882): a depthwise 3x3 convolution over the patch tokens, added to
    them; its zero padding encodes the border. The class token is unchanged. (N, prefix + S * S, D) -> same shape."""

    def __init__(self, dim: int, prefix_tokens: int) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        prefix, patches = x[:, : self.prefix_tokens], x[:, self.prefix_tokens :]
        side = math.isqrt(patches.shape[1])
        image = patches.mT.unflatten(2, (side, side))
        return torch.cat([prefix, patches + self.conv(image).flatten(2).mT], 1)


class PositionedBlock(Block):
    """A transformer block, optionally followed by a position encoding."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.position: nn.Module | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = super().forward(x, *args, **kwargs)
        return x if self.position is None else self.position(x)


def sincos_position_embedding(grid: tuple[int, int], dim: int, prefix_tokens: int) -> Tensor:
    """Fixed 2-D sin-cos embedding, (1, prefix + h * w, dim), zero for the prefix tokens; T = 10,000.

    The first half of the dimensions encodes the row and the second half the column, as in the authors' released
    weights.
    """
    quarter = dim // 4
    omega = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
    )
    x, y = torch.outer(columns.flatten(), omega), torch.outer(rows.flatten(), omega)
    patches = torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], 1)
    return torch.cat([patches.new_zeros(prefix_tokens, dim), patches])[None].float()


def build_vit(config: ModelConfig, channels: int, *, any_size: bool = False) -> VisionTransformer:
    """Build an encoder (N, channels, S, S) -> (N, ``num_features``) with the paper's initialisation."""
    dim, depth, heads = config.vit_size
    vit = VisionTransformer(
        img_size=config.img_size,
        patch_size=config.patch_size,
        in_chans=channels,
        num_classes=0,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        qk_norm=config.qk_norm,
        pos_embed="none" if config.pos_embed in ("none", "conv") else "learn",
        block_fn=PositionedBlock,
        weight_init="",
        dynamic_img_size=any_size,
        **_POOLS[config.pool],
    )
    if config.stem == "conv":
        vit.patch_embed.proj = ConvStem(channels, dim, config.patch_size)
    if config.mlp_norm == "bn":
        for block in vit.blocks:
            block.norm2 = TokenBatchNorm(dim)
    if config.pos_embed == "sincos":
        fixed = sincos_position_embedding(vit.patch_embed.grid_size, dim, vit.num_prefix_tokens)
        vit.pos_embed = nn.Parameter(fixed, requires_grad=False)
    elif config.pos_embed == "conv":  # after the first block, which works best in the paper
        vit.blocks[0].position = ConvPosition(dim, vit.num_prefix_tokens)
    _initialise(vit)
    return vit


@torch.no_grad()
def _initialise(vit: VisionTransformer) -> None:
    for name, module in vit.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if name.endswith("qkv"):  # Q, K and V each have their own fan-out
            for part in module.weight.chunk(3):
                nn.init.xavier_uniform_(part)
        else:
            nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=1e-6)
    projection = vit.patch_embed.proj
    if isinstance(projection, ConvStem):
        return  # keeps torch's default initialisation
    fan_in = projection.weight[0].numel()  # channels x patch x patch
    bound = math.sqrt(6 / (fan_in + vit.embed_dim))
    nn.init.uniform_(projection.weight, -bound, bound)
    nn.init.zeros_(projection.bias)
