"""The methods. A new one is a file, a line here and a test."""

from __future__ import annotations

from importlib import import_module

from stabilitylab.config import Config, check_choice
from stabilitylab.errors import ConfigError

METHODS = {
    "mocov3": "stabilitylab.methods.mocov3:MoCoV3",
    "simclr": "stabilitylab.methods.simclr:SimCLR",
    "byol": "stabilitylab.methods.byol:BYOL",
    "swav": "stabilitylab.methods.swav:SwAV",
    "dino": "stabilitylab.methods.dino:DINO",
    "vicreg": "stabilitylab.methods.vicreg:VICReg",
    "mocov2": "stabilitylab.methods.mocov2:MoCoV2",
}


def build_method(config: Config, channels: int) -> object:
    """The method of a run, with its encoder. Returns a `stabilitylab.methods.base.Method`."""
    from stabilitylab.models import build_encoder

    module, name = METHODS[check_choice("method", config.method.name, METHODS)].split(":")
    kind = getattr(import_module(module), name)
    crops = config.data.local_crops
    if crops and not kind.takes_local_crops:
        raise ConfigError(f"data.local_crops = {crops}: only swav and dino take local crops, not {config.method.name}")
    encoder = build_encoder(config.model, channels, any_size=crops > 0)
    return kind(encoder, config.method, vit=config.model.is_vit)
