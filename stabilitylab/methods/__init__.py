"""The self-supervised methods. To add one, write a file, a line in METHODS and a test."""

from __future__ import annotations

from typing import Any

from stabilitylab.config import Config
from stabilitylab.errors import ConfigError
from stabilitylab.registry import Registry, located

METHODS: Registry[Any] = Registry(
    "method",
    {
        "mocov3": "stabilitylab.methods.mocov3:MoCoV3",
        "simclr": "stabilitylab.methods.simclr:SimCLR",
        "byol": "stabilitylab.methods.byol:BYOL",
        "swav": "stabilitylab.methods.swav:SwAV",
        "dino": "stabilitylab.methods.dino:DINO",
        "vicreg": "stabilitylab.methods.vicreg:VICReg",
        "mocov2": "stabilitylab.methods.mocov2:MoCoV2",
    },
    group="stabilitylab.methods",
)
"""name -> the class, or its import path, so that listing the methods does not import torch."""


def build_method(config: Config, channels: int) -> object:
    """Build the method of a run with its encoder. Returns a `stabilitylab.methods.base.Method`.

    Raises ConfigError for an unknown method or for local crops that the method does not support."""
    from stabilitylab.models import build_encoder

    kind = located(METHODS.choose(config.method.name))
    crops = config.data.local_crops
    if crops and not kind.takes_local_crops:
        raise ConfigError(f"data.local_crops = {crops}: {config.method.name} has no local crops; use swav or dino")
    encoder = build_encoder(config.model, channels, any_size=crops > 0)
    return kind(encoder, config.method, vit=config.model.is_vit)
