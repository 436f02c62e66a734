"""Encoders and heads."""

from __future__ import annotations

from torch import nn

from stabilitylab.config import ModelConfig


def build_encoder(config: ModelConfig, channels: int, *, any_size: bool = False) -> nn.Module:
    """Build the backbone that ``config.arch`` names: images (N, channels, S, S) -> features (N, ``num_features``).
    ``any_size``: a ViT also accepts images of other sizes and resamples its position embedding."""
    # timm is imported here because it takes 3 s, which attaching to a loop of one's own should not cost.
    if config.is_vit:
        from stabilitylab.models.vit import build_vit

        return build_vit(config, channels, any_size=any_size)
    from stabilitylab.models.resnet import build_resnet

    return build_resnet(config, channels)
