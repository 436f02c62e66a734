"""Which runs belong together, and how they are told apart: one colour, dash and symbol an arm, with or without colour.

Runs of several seeds under one mitigation and learning rate are an arm; a run alone in its arm goes by its own name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Settings:
    """What tells runs apart. A run recorded elsewhere may lack them, or have anything in their place."""

    mitigation: str
    seed: int
    base_lr: float

    @classmethod
    def of(cls, config: dict[str, Any]) -> Settings:
        mitigation = mitigation_name(config.get("mitigation") or ())
        seed, base_lr = _value(config, "train", "seed", 0), _value(config, "optim", "base_lr", math.nan)
        return cls(mitigation, int(seed) if math.isfinite(seed) else 0, float(base_lr))


@dataclass(frozen=True, slots=True)
class Arm:
    """Runs drawn alike. ``members`` are indices into the runs; ``index`` picks colour, dash and symbol."""

    label: str
    index: int
    members: tuple[int, ...]


def arms(runs: Sequence[tuple[str, Settings]]) -> tuple[Arm, ...]:
    """The arms of named runs, in order of their first run, those without a mitigation first."""
    groups: dict[tuple[str, str], list[int]] = {}
    for place, (_, setting) in enumerate(runs):
        groups.setdefault((setting.mitigation, lr_label(setting.base_lr)), []).append(place)
    alone = len(groups) == len(runs)
    several_mitigations = len({mitigation for mitigation, _ in groups}) > 1
    several_rates = len({rate for _, rate in groups}) > 1
    found = []
    for index, ((mitigation, rate), members) in enumerate(
        sorted(groups.items(), key=lambda item: item[0][0] != "none")
    ):
        parts = [mitigation_label(mitigation)] if several_mitigations or not several_rates else []
        if several_rates and rate:
            parts.append(f"lr {rate}")
        label = runs[members[0]][0] if alone else ", ".join(parts)
        found.append(Arm(label, index, tuple(members)))
    return tuple(found)


def mitigation_name(mitigations: Any) -> str:
    """A set of mitigations as one name, ``clip-patch:0.1+qk-norm``; ``none`` without any.

    >>> mitigation_name(["clip-patch:0.1", "qk-norm"]), mitigation_name("frozen-patch"), mitigation_name(())
    ('clip-patch:0.1+qk-norm', 'frozen-patch', 'none')
    """
    names = mitigations if isinstance(mitigations, (list, tuple)) else [mitigations]
    return "+".join(map(str, names)) or "none"


def mitigation_label(mitigation: str) -> str:
    """The name as people read it."""
    return "no mitigation" if mitigation == "none" else mitigation


def lr_label(base_lr: float) -> str:
    return "" if math.isnan(base_lr) else f"{base_lr:.6g}"


def _value(config: dict[str, Any], section: str, key: str, missing: float) -> Any:
    inner = config.get(section)
    value = inner.get(key) if isinstance(inner, dict) else None
    return value if isinstance(value, (int, float)) else missing
