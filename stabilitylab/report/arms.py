"""Which runs belong together, and how they are told apart: one colour, dash and symbol an arm, with or without colour.

Runs of several seeds under one mitigation and learning rate are an arm; a run alone in its arm goes by its own name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Setting:
    """What decides a run's arm."""

    run: str
    mitigation: str
    base_lr: float


@dataclass(frozen=True, slots=True)
class Arm:
    """Runs drawn alike. ``members`` are indices into the runs; ``index`` picks colour, dash and symbol."""

    label: str
    index: int
    members: tuple[int, ...]


def arms(settings: Sequence[Setting]) -> tuple[Arm, ...]:
    """The arms in order of their first run, those without a mitigation first."""
    groups: dict[tuple[str, str], list[int]] = {}
    for place, setting in enumerate(settings):
        groups.setdefault((setting.mitigation, lr_label(setting.base_lr)), []).append(place)
    alone = len(groups) == len(settings)
    several_mitigations = len({mitigation for mitigation, _ in groups}) > 1
    several_rates = len({rate for _, rate in groups}) > 1
    found = []
    for index, ((mitigation, rate), members) in enumerate(
        sorted(groups.items(), key=lambda item: item[0][0] != "none")
    ):
        parts = [mitigation_label(mitigation)] if several_mitigations or not several_rates else []
        if several_rates and rate:
            parts.append(f"lr {rate}")
        label = settings[members[0]].run if alone else ", ".join(parts)
        found.append(Arm(label, index, tuple(members)))
    return tuple(found)


def mitigation_label(mitigation: str) -> str:
    return "no mitigation" if mitigation == "none" else mitigation


def lr_label(base_lr: float) -> str:
    return "" if math.isnan(base_lr) else f"{base_lr:.6g}"
