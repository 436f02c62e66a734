"""A claim put to the test: stated before the runs, decided by the interval, never by the mean.

A claim names a metric, two groups of runs, a direction and the smallest effect of interest. Runs are paired by all
that varies besides what tells the groups apart; differences are averaged within a seed, so that several learning
rates of a seed are not several seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from stabilitylab.comparison.paired import mean_interval

MIN_SEEDS = 3
DIRECTIONS = ("higher", "lower", "not_higher", "not_lower")
Row = Mapping[str, Any]
"""One run: what varies, by configuration key (``optim.base_lr``, ``train.seed``), and its metrics."""


@dataclass(frozen=True, slots=True)
class Claim:
    """``treated`` against ``baseline``, both among ``where``: key -> value. Without a baseline, the metric itself
    against 0. ``higher`` and ``lower`` claim a difference, ``not_higher`` and ``not_lower`` the absence of one as
    large as ``smallest``."""

    text: str
    metric: str
    treated: Mapping[str, Any]
    direction: str
    smallest: float
    baseline: Mapping[str, Any] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Claim:
        """ValueError names what is missing, unknown or out of range."""
        known = {f.name for f in fields(cls)}
        missing = {"text", "metric", "treated", "direction", "smallest"} - values.keys()
        for what, keys in (("unknown key", values.keys() - known), ("no", missing)):
            if keys:
                raise ValueError(f"claim {str(values.get('text', ''))!r}: {what} {', '.join(sorted(keys))}")
        for name in ("treated", "baseline", "where"):
            if not isinstance(values.get(name, {}), Mapping):
                raise ValueError(f'claim {values["text"]!r}: {name} is a table, such as {{ mitigation = "none" }}')
        if isinstance(values["smallest"], bool) or not isinstance(values["smallest"], (int, float)):
            raise ValueError(f"claim {values['text']!r}: smallest {values['smallest']!r} is not a positive number")
        claim = cls(**values)
        if claim.direction not in DIRECTIONS:
            raise ValueError(f"claim {claim.text!r}: direction {claim.direction!r} is not {' | '.join(DIRECTIONS)}")
        if not 0 < claim.smallest < math.inf:
            raise ValueError(f"claim {claim.text!r}: smallest {claim.smallest!r} is not a positive number")
        return claim


@dataclass(frozen=True, slots=True)
class Verdict:
    """``verdict``: reproduced, contradicted or inconclusive. ``difference`` and ``ci95`` are treated minus baseline,
    in the metric's own unit; None where too few seeds give none."""

    claim: Claim
    verdict: str
    reason: str
    difference: float | None
    ci95: tuple[float, float] | None
    num_seeds: int


def judge(claim: Claim, rows: Sequence[Row]) -> Verdict:
    """Decide ``claim`` by the 95% interval of the mean difference over seeds.

    A claimed difference is reproduced where the interval lies on the claimed side of 0 and reaches the smallest effect
    of interest; contradicted where it excludes an effect that large; else inconclusive. A claimed absence is
    reproduced where such an effect is excluded, contradicted where the whole interval is that large.
    """
    differences = _differences(claim, rows)
    n = len(differences)
    mean = float(differences.mean()) if n else None
    if n < MIN_SEEDS:
        return Verdict(claim, "inconclusive", f"{n} seeds, at least {MIN_SEEDS} are needed", mean, None, n)
    interval = mean_interval(differences)
    if interval is None or mean is None:  # e.g. no run of either group has a dip: that is no proof of anything
        return Verdict(claim, "inconclusive", f"all {n} seeds differ by the same amount: no interval", mean, None, n)
    low, high = interval if claim.direction in ("higher", "not_higher") else (-interval[1], -interval[0])
    side = "higher" if claim.direction in ("higher", "not_higher") else "lower"
    size = f"{claim.smallest:g} {side}"
    claimed = not claim.direction.startswith("not_")
    if high < claim.smallest:
        there, reason = False, f"the interval excludes an effect of {size}"
    elif low > 0 and (claimed or low >= claim.smallest):
        there, reason = True, f"the interval lies {side} than 0 and reaches {size}"
    else:
        holds = f"the interval holds both {'0' if low <= 0 else 'less'} and {size}"
        return Verdict(claim, "inconclusive", holds, mean, interval, n)
    return Verdict(claim, "reproduced" if there == claimed else "contradicted", reason, mean, interval, n)


def _differences(claim: Claim, rows: Sequence[Row]) -> np.ndarray:
    """One difference a seed (n,)."""
    apart = claim.treated.keys() | claim.baseline.keys()
    chosen = [row for row in rows if matches(row, claim.where) and _number(row.get(claim.metric)) is not None]
    treated = _by_pair([row for row in chosen if matches(row, claim.treated)], apart, claim.metric)
    baseline = _by_pair([row for row in chosen if matches(row, claim.baseline)], apart, claim.metric)
    by_seed: dict[Any, list[float]] = {}
    for (seed, rest), value in treated.items():
        if not claim.baseline:
            by_seed.setdefault(seed, []).append(value)
        elif (seed, rest) in baseline:
            by_seed.setdefault(seed, []).append(value - baseline[seed, rest])
    return np.array([np.mean(values) for _, values in sorted(by_seed.items())])


def matches(row: Row, wanted: Mapping[str, Any]) -> bool:
    """Whether a run has the values wanted, however they are spelled."""
    return all(_text(row.get(key)) == _text(value) for key, value in wanted.items())


def _by_pair(rows: Sequence[Row], apart: set[str], metric: str) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        rest = {k: _text(v) for k, v in row.items() if "." in k or k == "mitigation"}
        seed = rest.pop("train.seed", "")
        key = (seed, str(sorted((k, v) for k, v in rest.items() if k not in apart)))
        value = _number(row[metric])
        assert value is not None
        found.setdefault(key, []).append(value)
    return {key: float(np.mean(values)) for key, values in found.items()}


def _number(value: Any) -> float | None:
    """A finite number, also from the text of a CSV; None for what is empty."""
    if value is None or value == "":
        return None
    if value in ("True", "False"):
        return float(value == "True")
    number = float(value)
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    """One spelling of a value, whether it comes from TOML, a configuration or a CSV."""
    if isinstance(value, bool) or value in ("True", "False", "true", "false"):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return " + ".join(map(str, value)) or "none"
    try:
        return f"{float(value):.9g}"
    except (TypeError, ValueError):
        return "" if value is None else str(value)
