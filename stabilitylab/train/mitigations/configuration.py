"""Mitigations that change the configuration."""

from __future__ import annotations

from stabilitylab.config import Config, from_dict, set_key
from stabilitylab.errors import ConfigError


def _with(config: Config, **changes: object) -> Config:
    """Change ``section__key=value`` and validate the result like any other configuration."""
    values = config.model_dump()
    for key, value in changes.items():
        set_key(values, key.split("__"), value)
    return from_dict(values)


def stable(config: Config, value: float | None) -> Config:
    if config.optim.name not in ("adamw", "stableadamw"):
        raise ConfigError(f"mitigation 'stable-adamw' replaces AdamW, but optim.name is {config.optim.name}")
    return _with(config, optim__name="stableadamw")


def set_beta2(config: Config, value: float | None) -> Config:
    if config.optim.name in ("sgd", "lars"):
        raise ConfigError(f"mitigation 'beta2' needs a variant of Adam, but optim.name is {config.optim.name}")
    return _with(config, optim__beta2=value)


def lengthen_warmup(config: Config, value: float | None) -> Config:
    assert value is not None
    now = config.optim.warmup_iterations
    if config.optim.warmup_epochs:
        raise ConfigError(
            f"mitigation 'longer-warmup' counts iterations, but optim.warmup_epochs is {config.optim.warmup_epochs:g}; "
            "set optim.warmup_iterations instead"
        )
    if value != int(value) or (now is not None and value < now):
        raise ConfigError(f"mitigation 'longer-warmup:{value:g}' needs an integer of at least {now or 0}")
    return _with(config, optim__warmup_iterations=int(value), optim__warmup_epochs=None)


def use_conv_stem(config: Config, value: float | None) -> Config:
    if not config.model.is_vit:
        raise ConfigError(f"mitigation 'conv-stem' needs a ViT, but model.arch is {config.model.arch}")
    return _with(config, model__stem="conv")


def use_qk_norm(config: Config, value: float | None) -> Config:
    if not config.model.is_vit:
        raise ConfigError(f"mitigation 'qk-norm' needs attention, but {config.model.arch} has none")
    return _with(config, model__qk_norm=True)
