"""The methods. A new one is a file, a line here and a test."""

from __future__ import annotations

from importlib import import_module

from stabilitylab.config import Config, check_choice

METHODS = {
    "mocov3": "stabilitylab.methods.mocov3:MoCoV3",
}


def build_method(config: Config, channels: int) -> object:
    """The method of a run, with its encoder. Returns a `stabilitylab.methods.base.Method`."""
    from stabilitylab.models import build_encoder

    module, name = METHODS[check_choice("method", config.method.name, METHODS)].split(":")
    encoder = build_encoder(config.model, channels)
    return getattr(import_module(module), name)(encoder, config.method, vit=config.model.is_vit)
