"""Decisions from the values of a few seeds, by a confidence interval and a smallest effect of interest: once, or
sequentially as seeds are added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from stabilitylab.comparison.paired import mean_interval

MIN_SEEDS = 3
DIRECTIONS = ("higher", "lower", "not_higher", "not_lower", "equal")
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Decision:
    """``verdict``: ``reproduced``, ``contradicted`` or ``inconclusive``. ``mean``: of the values. ``interval``: its
    confidence interval; None with too few values."""

    verdict: str
    reason: str
    mean: float | None
    interval: tuple[float, float] | None


def decide(values: np.ndarray, direction: str, smallest: float, level: float = LEVEL) -> Decision:
    """Decide by Student's interval of the mean of ``values`` (n,), one difference per seed.

    ``higher`` and ``lower`` claim an effect. They are reproduced if the interval lies on that side of 0 and reaches
    ``smallest``, and contradicted if it excludes an effect of that size. ``not_higher`` and ``not_lower`` claim that
    there is no such effect. They are reproduced if the interval excludes one, and contradicted if the whole interval is
    at least that large. ``equal`` claims that there is no effect in either direction. It is reproduced if the interval
    lies within -smallest to smallest, and contradicted if it lies entirely outside. All other cases are inconclusive.
    """
    n = len(values)
    mean = float(values.mean()) if n else None
    if n < MIN_SEEDS:
        return Decision("inconclusive", f"{n} seeds; at least {MIN_SEEDS} are needed", mean, None)
    interval = mean_interval(values, level)
    if interval is None:  # e.g. no run of either group has a dip, which proves nothing
        return Decision("inconclusive", f"all {n} seeds differ by the same amount, so there is no interval", mean, None)
    verdict, reason = decide_interval(interval, direction, smallest)
    return Decision(verdict, reason, mean, interval)


def decide_interval(interval: tuple[float, float], direction: str, smallest: float) -> tuple[str, str]:
    """Verdict and reason from an interval; see `decide`."""
    return _equal(interval, smallest) if direction == "equal" else _one_sided(interval, direction, smallest)


def _equal(interval: tuple[float, float], smallest: float) -> tuple[str, str]:
    low, high = interval
    if -smallest < low and high < smallest:
        return "reproduced", f"the interval lies within -{smallest:g} to {smallest:g}"
    if low >= smallest or high <= -smallest:
        side = "higher" if low >= smallest else "lower"
        return "contradicted", f"the whole interval is at least {smallest:g} {side}"
    return "inconclusive", f"the interval lies neither inside nor outside -{smallest:g} to {smallest:g}"


def _one_sided(interval: tuple[float, float], direction: str, smallest: float) -> tuple[str, str]:
    up = direction in ("higher", "not_higher")
    low, high = interval if up else (-interval[1], -interval[0])
    side = "higher" if up else "lower"
    size = f"{smallest:g} {side}"
    claimed = not direction.startswith("not_")
    if high < smallest:
        there, reason = False, f"the interval excludes an effect of {size}"
    elif low > 0 and (claimed or low >= smallest):
        there, reason = True, f"the interval lies {side} than 0 and reaches {size}"
    else:
        return "inconclusive", f"the interval contains both {'0' if low <= 0 else 'a smaller effect'} and {size}"
    return "reproduced" if there == claimed else "contradicted", reason


def decide_share(values: np.ndarray, direction: str, limit: float, level: float = LEVEL) -> Decision:
    """Decide by the exact interval (Clopper-Pearson) of the share of ones among ``values`` (n,), each 0 or 1.

    ``higher`` and ``not_lower`` claim a share of at least ``limit``; ``lower`` and ``not_higher`` claim a share below.
    """
    n, hits = len(values), int(values.sum())
    mean = float(values.mean()) if n else None
    if n < MIN_SEEDS:
        return Decision("inconclusive", f"{n} seeds; at least {MIN_SEEDS} are needed", mean, None)
    low, high = exact_share_interval(hits, n, level)
    counted = f"{hits} of {n}"
    if low >= limit:
        above, reason = True, f"{counted}: the interval lies at or above {limit:g}"
    elif high < limit:
        above, reason = False, f"{counted}: the interval lies below {limit:g}"
    else:
        return Decision("inconclusive", f"{counted}: the interval contains {limit:g}", mean, (low, high))
    claimed = direction in ("higher", "not_lower")
    return Decision("reproduced" if above == claimed else "contradicted", reason, mean, (low, high))


def exact_share_interval(hits: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Clopper-Pearson interval of the proportion ``hits / n``."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


def look_levels(num_looks: int, level: float = LEVEL) -> tuple[float, ...]:
    """The confidence level at each of ``num_looks`` looks of a sequential test.

    The error 1 - ``level`` is divided among the looks (Bonferroni) in proportion to k^2 for look k. Together, the
    intervals miss the true value in at most 1 - ``level`` of all studies, whatever the stopping rule, and the last look
    is nearly as precise as a single test.

    >>> [round(level, 4) for level in look_levels(4)]
    [0.9983, 0.9933, 0.985, 0.9733]
    """
    shares = [k**2 for k in range(1, num_looks + 1)]
    return tuple(1 - (1 - level) * share / sum(shares) for share in shares)


def decide_in_turn(
    values: np.ndarray, looks: Sequence[int], direction: str, smallest: float, *, share: bool = False
) -> tuple[Decision, int]:
    """Sequential test: the first decision that is not inconclusive, else the last one, and the number of seeds used.

    ``looks``: the numbers of seeds at which to test; at least one.
    """
    rule = decide_share if share else decide
    for used, level in zip(looks, look_levels(len(looks)), strict=True):
        decision = rule(values[:used], direction, smallest, level)
        if decision.verdict != "inconclusive":
            break
    return decision, used
