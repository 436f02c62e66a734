"""Encoders and heads."""

from __future__ import annotations

from torch import nn

from stabilitylab.config import ModelConfig
from stabilitylab.models.resnet import build_resnet
from stabilitylab.models.vit import build_vit


def build_encoder(config: ModelConfig, channels: int, *, any_size: bool = False) -> nn.Module:
    """Build the backbone that ``config.arch`` names: images (N, channels, S, S) -> features (N, ``num_features``).
    ``any_size``: a ViT also accepts images of other sizes and resamples its position embedding."""
    return build_vit(config, channels, any_size=any_size) if config.is_vit else build_resnet(config, channels)
