"""Collapse: features that no longer differ, a loss at the level of chance, a metric that falls and stays down.

Each sign is judged at the end of the record: a state counts from the evaluation on which it lasts to the end. What was
not measured is not judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.series import EvalCurve, RunSeries

MIN_EVALUATIONS = 5
LAST = 3
"""A state lasts where it holds at so many evaluations in a row, the last ones of the record."""
SPREAD_GONE = 0.08
"""Share of the spread of features that point everywhere alike, below which they are one feature."""
SPREAD_LOW, RANK_GONE, RANK_LOW = 0.15, 1.2, 0.25
"""Less than RANK_LOW of the highest rank reached is a loss of dimensions."""
ACCURACY_GONE, ACCURACY_LOW = 0.25, 0.6
"""Shares of the best level reached, below which an accuracy is gone or has fallen."""
AT_CHANCE = 0.01
LOSS_WINDOW = 50


@dataclass(frozen=True, slots=True)
class Sign:
    """One sign of collapse. ``state``: ``gone``, ``low``, ``healthy`` or ``not judged``; ``since``: the iteration from
    which it lasts; ``value`` at the end and ``healthy`` level it is held against, where known."""

    name: str
    state: str
    since: int | None = None
    value: float | None = None
    healthy: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Collapse:
    """``verdict``: ``collapsed``, ``partly``, ``not`` or ``not judged``; ``iteration``: from which the state lasts."""

    verdict: str
    iteration: int | None
    reason: str
    signs: tuple[Sign, ...] = ()


def find_collapse(series: RunSeries, accuracy: tuple[str, EvalCurve] | None = None) -> Collapse:
    """Judge a run by every sign that was measured. ``accuracy``: name and curve of a share that is better when
    higher; None where the judged metric is none."""
    signs = (
        _spread(series),
        _rank(series),
        _loss(series),
        _accuracy(accuracy),
    )
    judged = [sign for sign in signs if sign.state != "not judged"]
    if not judged:
        lacking = "; ".join(f"{sign.name}: {sign.reason}" for sign in signs)
        return Collapse("not judged", None, lacking, signs)
    gone = [sign for sign in judged if sign.state == "gone"]
    low = [sign for sign in judged if sign.state == "low"]
    features = [sign for sign in judged if sign.name in ("feature_spread", "feature_rank")]
    named = ", ".join(_told(sign) for sign in (*gone, *low))
    # The loss at chance alone may be a run that has yet to begin; a metric alone, one that diverged.
    sure = [sign for sign in gone if sign.name != "loss"]
    if any(sign in features for sign in sure) or (sure and len(gone) + len(low) > 1) or (sure and not features):
        since = min(sign.since for sign in sure if sign.since is not None)
        return Collapse("collapsed", since, named, signs)
    if gone or low:
        return Collapse("partly", min(s.since for s in (*gone, *low) if s.since is not None), named, signs)
    said = ", ".join(sign.name for sign in judged)
    return Collapse("not", None, f"judged by {said}", signs)


def chance_loss(facts: Mapping[str, str | float]) -> float | None:
    """The loss of features that are all alike: 4 tau ln N for MoCo v3, ln(2N - 1) for SimCLR. None elsewhere."""
    batch, temperature = facts.get("batch_size"), facts.get("temperature")
    if not isinstance(batch, (int, float)) or batch < 2:
        return None
    if facts.get("method") == "mocov3" and isinstance(temperature, (int, float)):
        return 4 * float(temperature) * math.log(batch)
    return math.log(2 * batch - 1) if facts.get("method") == "simclr" else None


def _told(sign: Sign) -> str:
    healthy = "" if sign.healthy is None else f" of {sign.healthy:.3g}"
    level = "at its chance level" if sign.name == "loss" else f"{sign.value:.3g}{healthy}"
    return f"{sign.name} {level} since {sign.since}"


def _spread(series: RunSeries) -> Sign:
    curve = series.scalars.get("feature_spread")
    values, iteration, why = _usable(curve)
    if why:
        return Sign("feature_spread", "not judged", reason=why)
    dims = series.scalars.get("feature_dim")
    isotropic = 1 / math.sqrt(float(dims[1][-1])) if dims is not None and len(dims[1]) else float(values.max())
    share = values / isotropic
    return _state("feature_spread", iteration, values, share, SPREAD_GONE, SPREAD_LOW, isotropic)


def _rank(series: RunSeries) -> Sign:
    values, iteration, why = _usable(series.scalars.get("feature_rank"))
    if why:
        return Sign("feature_rank", "not judged", reason=why)
    best = float(np.max(values))
    gone = _since(iteration, values < RANK_GONE)
    if gone is not None:
        return Sign("feature_rank", "gone", gone, float(values[-1]), best)
    since = _since(iteration, values < RANK_LOW * best)
    return Sign("feature_rank", "healthy" if since is None else "low", since, float(values[-1]), best)


def _loss(series: RunSeries) -> Sign:
    chance, curve = chance_loss(series.facts), series.scalars.get("loss")
    if chance is None:
        return Sign("loss", "not judged", reason="no chance level is known for it")
    if curve is None or np.isfinite(curve[1]).sum() < LOSS_WINDOW * LAST:
        return Sign("loss", "not judged", reason=f"fewer than {LOSS_WINDOW * LAST} values")
    iteration, loss = curve[0][np.isfinite(curve[1])], curve[1][np.isfinite(curve[1])]
    blocks = len(loss) // LOSS_WINDOW
    medians = np.median(loss[: blocks * LOSS_WINDOW].reshape(blocks, LOSS_WINDOW), axis=1)
    starts = iteration[: blocks * LOSS_WINDOW : LOSS_WINDOW]
    since = _since(starts, medians > (1 - AT_CHANCE) * chance)
    return Sign("loss", "healthy" if since is None else "gone", since, float(medians[-1]), chance)


def _accuracy(judged: tuple[str, EvalCurve] | None) -> Sign:
    if judged is None:
        return Sign("accuracy", "not judged", reason="no share of right answers is judged")
    name, curve = judged
    values, iteration, why = _usable((curve.iteration, curve.value))
    if why:
        return Sign(name, "not judged", reason=why)
    windows = np.lib.stride_tricks.sliding_window_view(values, LAST)
    best = float(np.median(windows, axis=1).max())
    if best <= 0:
        return Sign(name, "healthy", None, float(values[-1]), best)
    peak = int(np.argmax(np.median(windows, axis=1)))
    share = values / best
    share[: peak + 1] = 1.0  # what came before the best was no fall
    return _state(name, iteration, values, share, ACCURACY_GONE, ACCURACY_LOW, best)


def _state(
    name: str, iteration: np.ndarray, values: np.ndarray, share: np.ndarray, gone: float, low: float, healthy: float
) -> Sign:
    for state, limit in (("gone", gone), ("low", low)):
        since = _since(iteration, share < limit)
        if since is not None:
            return Sign(name, state, since, float(values[-1]), healthy)
    return Sign(name, "healthy", None, float(values[-1]), healthy)


def _since(iteration: np.ndarray, holds: np.ndarray) -> int | None:
    """From which iteration on ``holds`` (n,) is true to the end; None where it is not at the last few."""
    if len(holds) < LAST or not holds[-LAST:].all():
        return None
    broken = np.flatnonzero(~holds)
    return int(iteration[broken[-1] + 1 if len(broken) else 0])


def _usable(curve: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Finite values in order, their iterations, and why they are too few (empty where they are not)."""
    if curve is None or len(curve[0]) == 0:
        return np.array([]), np.array([]), "not recorded"
    iteration, value = np.asarray(curve[0]), np.asarray(curve[1], dtype=np.float64)
    keep = np.isfinite(value)
    iteration, value = iteration[keep], value[keep]
    order = np.argsort(iteration, kind="stable")
    iteration, value = iteration[order], value[order]
    if len(value) < MIN_EVALUATIONS:
        return value, iteration, f"{len(value)} values, and {MIN_EVALUATIONS} are needed"
    return value, iteration, ""
