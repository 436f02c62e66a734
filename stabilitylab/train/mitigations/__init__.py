"""The mitigations by name. To add one, write a function and a line in MITIGATIONS.

A mitigation is written ``name`` or ``name:value`` and acts at one stage: on the configuration before anything is built,
on the model before the optimizer is created, on the gradient after it is recorded, or on the update, which it can skip.
The mitigations of a run are applied in the given order.
"""

from __future__ import annotations

from collections.abc import Iterable

from stabilitylab.config import Config
from stabilitylab.errors import ConfigError
from stabilitylab.registry import Registry
from stabilitylab.train.mitigations.stages import Mitigation, ParsedMitigation, check_mitigation, loaded

__all__ = ["MITIGATIONS", "Mitigation", "ParsedMitigation", "configured", "describe_mitigations", "parse_mitigations"]

_HERE = "stabilitylab.train.mitigations."

MITIGATIONS: Registry[Mitigation] = Registry(
    "mitigation",
    {
        "frozen-patch": Mitigation(
            "freezes the patch projection at its random initialisation: the paper's fix",
            model=_HERE + "model:freeze",
            patch=True,
        ),
        "bn-patch": Mitigation(
            "normalises the projected patches with BatchNorm",
            model=_HERE + "model:add_batch_norm",
            patch=True,
        ),
        "wn-patch": Mitigation(
            "weight-normalises the patch projection",
            model=_HERE + "model:add_weight_norm",
            patch=True,
        ),
        "clip-patch": Mitigation(
            "clips the patch projection's gradient to L2 norm T",
            "T",
            gradient=_HERE + "gradient:clip_patch",
            patch=True,
        ),
        "clip-global": Mitigation(
            "clips the whole gradient to L2 norm T",
            "T",
            gradient=_HERE + "gradient:clip_global",
        ),
        "agc": Mitigation(
            "clips each unit's gradient to T times its weight norm",
            "T",
            gradient=_HERE + "gradient:clip_adaptively",
        ),
        "zclip": Mitigation(
            "clips the whole gradient if its norm is 2.5 sd above its mean",
            gradient=_HERE + "gradient:zclip",
        ),
        "skip-spike": Mitigation(
            "skips an update if its gradient norm is above three times the median",
            update=_HERE + "update:is_spike",
        ),
        "stable-adamw": Mitigation(
            "divides AdamW's learning rate by max(1, RMS_t), per tensor",
            configure=_HERE + "configuration:stable",
        ),
        "beta2": Mitigation(
            "sets AdamW's second-moment decay to B",
            "B",
            configure=_HERE + "configuration:set_beta2",
        ),
        "longer-warmup": Mitigation(
            "warms up over N iterations",
            "N",
            configure=_HERE + "configuration:lengthen_warmup",
        ),
        "conv-stem": Mitigation(
            "replaces the patch projection with stacked convolutions",
            configure=_HERE + "configuration:use_conv_stem",
        ),
        "qk-norm": Mitigation(
            "normalises queries and keys",
            configure=_HERE + "configuration:use_qk_norm",
        ),
    },
    group="stabilitylab.mitigations",
    check=check_mitigation,
)


def describe_mitigations() -> str:
    """The syntax of each mitigation, for help texts."""
    entries = ((name, MITIGATIONS.own(name)) for name in MITIGATIONS)  # plugins are listed without being loaded
    return ", ".join(f"{name}:{entry.value}" if entry and entry.value else name for name, entry in entries)


def parse_mitigations(names: Iterable[str]) -> list[ParsedMitigation]:
    """Parse names such as ``["frozen-patch", "clip-patch:0.01"]``; ``none`` is skipped. Raises ConfigError for an
    unknown name, a missing or superfluous value, or a duplicate."""
    parsed: list[ParsedMitigation] = []
    for text in names:
        if text == "none":
            continue
        name, colon, raw = text.partition(":")
        entry = loaded(MITIGATIONS.choose(name))
        if bool(colon) != bool(entry.value):
            form = f"{name}:{entry.value}" if entry.value else name
            raise ConfigError(f"mitigation {text!r} must be written {form}")
        if any(given.name == name for given in parsed):
            raise ConfigError(f"mitigation {name!r} is given twice")
        parsed.append(ParsedMitigation(text, name, entry, _positive(text, raw) if colon else None))
    return parsed


def _positive(text: str, raw: str) -> float:
    try:
        value = float(raw)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise ConfigError(f"mitigation {text!r}: {raw!r} is not a positive number")
    return value


def configured(config: Config) -> Config:
    """The configuration after its mitigations have changed it. Idempotent. Raises ConfigError if a mitigation does not
    fit the encoder or the optimizer."""
    given = parse_mitigations(config.mitigation)
    for item in given:
        if item.entry.configure is not None:
            config = item.entry.configure(config, item.value)
    for item in given:
        if item.entry.patch and not (config.model.is_vit and config.model.stem == "patch"):
            stem = config.model.arch if not config.model.is_vit else "a conv stem"
            raise ConfigError(f"mitigation {item.text!r} needs a patch projection, and {stem} has none")
    names = {item.name for item in given}
    if {"frozen-patch", "clip-patch"} <= names:
        raise ConfigError("mitigation 'clip-patch' has nothing to clip: 'frozen-patch' leaves no gradient")
    return config
