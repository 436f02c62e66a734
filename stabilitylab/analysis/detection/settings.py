"""Settings of spike detection: a frozen dataclass that is part of every cache key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from stabilitylab.registry import Registry


@dataclass(frozen=True, slots=True)
class Rule:
    """A published detection rule, for comparison.

    ``about``: a one-line description. ``threshold``: a value with a score of at least this is part of a spike.
    ``score(norm, warmup)``: takes finite norms (n,) and returns two arrays (n,): how many standard deviations each
    norm lies above its expected value (-inf where unknown), and the expected value. It may be given as
    ``"package.module:function"``.
    """

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
"""Rules other than the default, ``stablab``. They guarantee no false-alarm rate."""


def describe_rules() -> str:
    """A one-line description of every rule, for ``--help``. Rules of plugins are listed by name and not imported."""
    entries = ((name, RULES.own(name)) for name in RULES)
    return "; ".join(f"{name}: {entry.about}" if entry else name for name, entry in entries)


@dataclass(frozen=True, slots=True)
class SpikeSettings:
    """Settings of spike detection.

    ``window``, ``warmup``: lengths of the running medians and of the start that is not judged, in recorded values.
    ``merge_gap``: events at most this many recording steps apart are merged. ``ratio_open``: least ratio of a spike to
    the running median. ``z_open``, ``z_close``: scores, in noise sd, at which an event opens and closes.
    ``false_alarms_per_10k``: target rate of false alarms per 10,000 values and layer, from which the opening threshold
    is calibrated. None disables the calibration: ``z_open`` then applies to single values. ``z_open`` also applies
    where a series is too short or varies too little to calibrate. ``rule``: ``stablab``, or one of `RULES`, which uses
    its published parameters and ignores the other settings.

    Raises:
        ValueError: a value is out of range, or the rule is unknown.
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
