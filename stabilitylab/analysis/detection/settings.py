"""How spikes are looked for: one frozen set of numbers, part of every answer's cache key."""

from __future__ import annotations

import math
from dataclasses import dataclass

RULES = ("stablab", "olmo", "zscore", "ema")


@dataclass(frozen=True, slots=True)
class SpikeSettings:
    """How spikes are found. Lengths in iterations (values, where a series has gaps), z in noise sd.

    ``false_alarms_per_10k`` events per 10,000 iterations and layer that chance alone may open; None uses
    ``z_open`` as it stands, for single values. ``z_open`` also stands in where a series is too short or too still to
    calibrate. ``rule``: ``stablab``, or one of ``rules.py`` with its published parameters, which ignores the rest.
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
        if self.rule not in RULES:
            raise ValueError(f"unknown rule {self.rule!r}: use {', '.join(RULES)}")
