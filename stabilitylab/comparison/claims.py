"""Testing claims: stated before the runs, decided by the confidence interval, never by the mean alone.

A claim names a metric, two groups of runs, a direction and the smallest effect of interest. Runs are paired by every
setting that varies except those that define the groups. Differences are averaged within a seed, so that several
learning rates of one seed do not count as several seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from stabilitylab.comparison.decisions import DIRECTIONS, LEVEL, decide, decide_share, look_levels
from stabilitylab.comparison.paired import mean_interval
from stabilitylab.comparison.pooled_claims import POOLED, decide_pooled

SHARES = ("diverged", "dead")
"""Metrics that are 0 or 1 in every run. A claim about a single group is about the share of runs with 1."""
DEAD_SHARE = 0.2
"""A group does not train if more than this share of its runs end below the accuracy of the untrained encoder."""
Row = Mapping[str, Any]
"""One run: what varies, by configuration key (``optim.base_lr``, ``train.seed``), and its metrics."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim about the difference between ``treated`` and ``baseline``, both given as {key: value}, among the runs
    that match ``where``.

    Without a baseline, the metric itself is compared with 0, or a share such as ``diverged`` with ``smallest``.
    ``direction``: ``higher`` and ``lower`` claim a difference; ``not_higher``, ``not_lower`` and ``equal`` claim that
    there is none as large as ``smallest``, the equivalence margin.

    ``follow_up``: the name of a later study that puts the same question to new seeds, for a claim that was left
    undecided.
    """

    text: str
    metric: str
    treated: Mapping[str, Any]
    direction: str
    smallest: float
    baseline: Mapping[str, Any] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    follow_up: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Claim:
        """Build a claim from a table of a study file. Raises ValueError for a missing, unknown or invalid key."""
        known = {f.name for f in fields(cls)}
        missing = {"text", "metric", "treated", "direction", "smallest"} - values.keys()
        for what, keys in (("unknown key", values.keys() - known), ("missing key", missing)):
            if keys:
                raise ValueError(f"claim {str(values.get('text', ''))!r}: {what} {', '.join(sorted(keys))}")
        for name in ("treated", "baseline", "where"):
            if not isinstance(values.get(name, {}), Mapping):
                raise ValueError(f'claim {values["text"]!r}: {name} must be a table, such as {{ mitigation = "none" }}')
        if isinstance(values["smallest"], bool) or not isinstance(values["smallest"], (int, float)):
            raise ValueError(f"claim {values['text']!r}: smallest {values['smallest']!r} is not a positive number")
        claim = cls(**values)
        if claim.direction not in DIRECTIONS:
            raise ValueError(
                f"claim {claim.text!r}: direction {claim.direction!r} is not one of {', '.join(DIRECTIONS)}"
            )
        if not 0 < claim.smallest < math.inf:
            raise ValueError(f"claim {claim.text!r}: smallest {claim.smallest!r} is not a positive number")
        if claim.metric == POOLED and claim.baseline:
            raise ValueError(f"claim {claim.text!r}: {POOLED} is about one group of runs; remove baseline")
        if claim.is_share and (claim.direction == "equal" or claim.smallest >= 1):
            raise ValueError(f"claim {claim.text!r}: a share must be higher or lower than a limit between 0 and 1")
        return claim

    def asks_the_same_as(self, other: Claim) -> bool:
        """Whether both claims compare the same groups by the same metric. Direction and smallest effect may differ."""
        names = ("metric", "treated", "baseline", "where")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    @property
    def is_share(self) -> bool:
        """Whether the claim is about the share of runs of one group."""
        return self.metric in SHARES and not self.baseline


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a claim.

    ``verdict``: ``reproduced``, ``contradicted``, ``inconclusive``, or ``dead`` if a group does not train.
    ``difference``: treated minus baseline in units of the metric, or the mean of a single group. ``ci95``: its 95%
    interval; both are None with too few seeds. ``interval``: the interval that decided, at ``level``; wider than
    ``ci95`` if seeds were added sequentially.
    """

    claim: Claim
    verdict: str
    reason: str
    difference: float | None
    ci95: tuple[float, float] | None
    num_seeds: int
    interval: tuple[float, float] | None = None
    level: float = LEVEL


def judge(claim: Claim, rows: Sequence[Row], looks: Sequence[int] = ()) -> Verdict:
    """Decide ``claim`` by the interval of the mean difference over seeds (see `decide`), or of a share over seeds.

    ``looks``: for sequential testing, the numbers of seeds at which the data are tested. The first look that decides
    is final; its interval has the level of `look_levels`. A look requires all of its seeds.

    The verdict is ``dead``, whatever the interval, if a group does not train: more than a fifth of its runs end below
    the accuracy of the untrained encoder.
    """
    if claim.metric == POOLED:
        return _judge_pooled(claim, rows, looks)
    if not looks:
        return _judge(claim, rows, LEVEL)
    seeds, levels = _seeds(claim, rows), look_levels(len(looks))
    if len(seeds) < looks[0]:
        few = f"{len(seeds)} of the {looks[0]} seeds of the first look"
        return Verdict(claim, "inconclusive", few, None, None, len(seeds), level=levels[0])
    for look, level in zip(looks, levels, strict=True):
        if look > len(seeds):
            break
        first = set(seeds[:look])
        verdict = _judge(claim, [row for row in rows if _text(row.get("train.seed")) in first], level)
        if verdict.verdict != "inconclusive":
            break
    return verdict


def _judge_pooled(claim: Claim, rows: Sequence[Row], looks: Sequence[int]) -> Verdict:
    """Decide a claim about a pooled lag by its interval over runs. In a sequential study it is decided once, when all
    seeds are available, so its level is that of a single test."""
    chosen = [row for row in rows if matches(row, claim.where) and matches(row, claim.treated)]
    seeds = len({_text(row.get("train.seed")) for row in chosen})
    if looks and seeds < looks[-1]:
        few = f"{seeds} of {looks[-1]} seeds; a pooled lag is decided when all seeds are available"
        return Verdict(claim, "inconclusive", few, None, None, seeds)
    verdict, reason, median, interval = decide_pooled(chosen, claim.direction, claim.smallest)
    dead = _dead_group(claim, rows)
    if dead:
        verdict, reason = "dead", dead
    return Verdict(claim, verdict, reason, median, interval, seeds, interval)


def _seeds(claim: Claim, rows: Sequence[Row]) -> list[str]:
    """The seeds that every group has, in order."""
    groups = [claim.treated, *([claim.baseline] if claim.baseline else [])]
    chosen = [row for row in rows if matches(row, claim.where)]
    shared = set.intersection(*({_text(row.get("train.seed")) for row in chosen if matches(row, g)} for g in groups))
    return sorted(shared, key=lambda seed: (len(seed), seed))


def _judge(claim: Claim, rows: Sequence[Row], level: float) -> Verdict:
    values = _differences(claim, rows)
    share = claim.is_share and bool(np.isin(values, (0.0, 1.0)).all())
    decision = (decide_share if share else decide)(values, claim.direction, claim.smallest, level)
    narrow = decide_share(values, claim.direction, claim.smallest).interval if share else mean_interval(values)
    ci95 = narrow if decision.interval is not None else None
    verdict, reason = decision.verdict, decision.reason
    dead = _dead_group(claim, rows)
    if dead and claim.metric != "dead":
        verdict, reason = "dead", dead
    return Verdict(claim, verdict, reason, decision.mean, ci95, len(values), decision.interval, level)


def _dead_group(claim: Claim, rows: Sequence[Row]) -> str:
    """A sentence about a group that does not train; empty if both train or if the rows do not say."""
    for name in ("treated", "baseline"):
        group = getattr(claim, name)
        if name == "baseline" and not group:
            continue
        flags = [
            _number(row.get("dead"))
            for row in rows
            if matches(row, claim.where) and matches(row, group) and row.get("dead") not in (None, "")
        ]
        if flags and np.mean(np.array(flags, dtype=float)) > DEAD_SHARE:
            return f"{sum(map(bool, flags))} of {len(flags)} runs of the {name} group end below the untrained encoder"
    return ""


def _differences(claim: Claim, rows: Sequence[Row]) -> np.ndarray:
    """Differences (n,), one per seed."""
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
    """Whether a run has the ``wanted`` values, compared as numbers or normalised text."""
    return all(_text(row.get(key)) == _text(value) for key, value in wanted.items())


def _by_pair(rows: Sequence[Row], apart: set[str], metric: str) -> dict[tuple[str, str], float]:
    values_of_pair: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        rest = {k: _text(v) for k, v in row.items() if "." in k or k == "mitigation"}
        seed = rest.pop("train.seed", "")
        key = (seed, str(sorted((k, v) for k, v in rest.items() if k not in apart)))
        value = _number(row[metric])
        assert value is not None
        values_of_pair.setdefault(key, []).append(value)
    return {key: float(np.mean(values)) for key, values in values_of_pair.items()}


def _number(value: Any) -> float | None:
    """A finite number, also from the text of a CSV cell; None if it is empty."""
    if value is None or value == "":
        return None
    if value in ("True", "False"):
        return float(value == "True")
    number = float(value)
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    """A value as normalised text, whether it comes from TOML, a configuration or a CSV file."""
    if isinstance(value, bool) or value in ("True", "False", "true", "false"):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return " + ".join(map(str, value)) or "none"
    try:
        return f"{float(value):.9g}"
    except (TypeError, ValueError):
        return "" if value is None else str(value)
