"""Grouping runs into arms: runs with the same mitigation and learning rate, with several seeds.

An arm has one colour, dash pattern and symbol, so that plots are readable without colour. If every arm has one run, the
arms are labelled with the names of the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that distinguish runs. Imported runs may lack them or have values of any type."""

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
    """Runs that are drawn alike. ``members``: indices into the runs. ``index``: selects colour, dash and symbol."""

    label: str
    index: int
    members: tuple[int, ...]


def arms(runs: Sequence[tuple[str, Settings]]) -> tuple[Arm, ...]:
    """The arms of ``runs`` (name, settings), in order of their first run; arms without a mitigation come first."""
    groups: dict[tuple[str, str], list[int]] = {}
    for place, (_, setting) in enumerate(runs):
        groups.setdefault((setting.mitigation, lr_label(setting.base_lr)), []).append(place)
    alone = len(groups) == len(runs)
    several_mitigations = len({mitigation for mitigation, _ in groups}) > 1
    several_rates = len({rate for _, rate in groups}) > 1
    formed = []
    for index, ((mitigation, rate), members) in enumerate(
        sorted(groups.items(), key=lambda item: item[0][0] != "none")
    ):
        parts = [mitigation_label(mitigation)] if several_mitigations or not several_rates else []
        if several_rates and rate:
            parts.append(f"lr {rate}")
        label = runs[members[0]][0] if alone else ", ".join(parts)
        formed.append(Arm(label, index, tuple(members)))
    return tuple(formed)


def mitigation_name(mitigations: Any) -> str:
    """A set of mitigations as one name, ``clip-patch:0.1+qk-norm``; ``none`` without any.

    >>> mitigation_name(["clip-patch:0.1", "qk-norm"]), mitigation_name("frozen-patch"), mitigation_name(())
    ('clip-patch:0.1+qk-norm', 'frozen-patch', 'none')
    """
    names = mitigations if isinstance(mitigations, (list, tuple)) else [mitigations]
    return "+".join(map(str, names)) or "none"


def mitigation_label(mitigation: str) -> str:
    """The name of a mitigation in tables and plots."""
    return "no mitigation" if mitigation == "none" else mitigation


def lr_label(base_lr: float) -> str:
    return "" if math.isnan(base_lr) else f"{base_lr:.6g}"


def _value(config: dict[str, Any], section: str, key: str, missing: float) -> Any:
    inner = config.get(section)
    value = inner.get(key) if isinstance(inner, dict) else None
    return value if isinstance(value, (int, float)) else missing
