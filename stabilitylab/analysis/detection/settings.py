"""How spikes are looked for: one frozen set of numbers, part of every answer's cache key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from stabilitylab.registry import Registry


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule to compare with. ``score(norm, warmup)`` gives, for (n,) finite norms, how many standard deviations each
    lies above what the rule expects (-inf where it cannot tell), and what it expects; also as
    ``"package.module:function"``. A value fires from ``threshold`` on. ``about``: one line."""

    about: str
    threshold: float
    score: Any


_RULES = "stabilitylab.analysis.detection.rules:"

RULES: Registry[Rule] = Registry(
    "rule",
    {
        "olmo": Rule("7 sd above the mean of the last 1,000 values", 7.0, _RULES + "olmo"),
        "zscore": Rule("3 sd above the mean of the last 200 values", 3.0, _RULES + "zscore"),
        "ema": Rule("ZClip's z of 2.5", 2.5, _RULES + "ema"),
    },
    group="stabilitylab.rules",
)
"""Rules other than this package's own, ``stablab``; they promise no false-alarm rate."""


def describe_rules() -> str:
    """What each does, for a help page; those of other packages are listed without being loaded."""
    entries = ((name, RULES.own(name)) for name in RULES)
    return "; ".join(f"{name}: {entry.about}" if entry else name for name, entry in entries)


@dataclass(frozen=True, slots=True)
class SpikeSettings:
    """How spikes are found. Lengths in iterations (values, where a series has gaps), z in noise sd.

    ``false_alarms_per_10k`` events per 10,000 iterations and layer that chance alone may open; None uses
    ``z_open`` as it stands, for single values. ``z_open`` also stands in where a series is too short or too still to
    calibrate. ``rule``: ``stablab``, or one of `RULES` with its published parameters, which ignores the rest.
    """

    window: int = 200
    z_open: float = 6.0
    ratio_open: float = 2.0
    z_close: float = 3.0
    merge_gap: int = 3
    warmup: int = 50
    false_alarms_per_10k: float | None = 1.0
    rule: str = "stablab"

    def __post_init__(self) -> None:
        if self.window < 2 or self.warmup < 2:
            raise ValueError(f"window and warmup must be at least 2, not {self.window} and {self.warmup}")
        rate = self.false_alarms_per_10k
        if rate is not None and not (0 < rate <= 1000 and math.isfinite(rate)):
            raise ValueError(f"false_alarms_per_10k must be above 0 and at most 1000, not {rate}")
        if not (self.ratio_open >= 1 and math.isfinite(self.ratio_open)):
            raise ValueError(f"ratio_open must be at least 1, not {self.ratio_open}")
        if self.rule != "stablab" and self.rule not in RULES:
            raise ValueError(f"unknown rule {self.rule!r}: use {', '.join(('stablab', *RULES))}")
