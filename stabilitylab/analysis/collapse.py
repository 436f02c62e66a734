"""Representation collapse: features that no longer differ, a loss at chance level, a metric that falls and stays low.

Each sign is judged at the end of the run: a state counts only if it lasts until the end. Signs that were not measured
are not judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.series import EvalCurve, RunSeries

MIN_EVALUATIONS = 5
LAST = 3
"""A state is reported only if it holds at this many evaluations in a row at the end of the run."""
SPREAD_GONE, SPREAD_LOW = 0.02, 0.15
"""Shares of the spread of isotropic features. The features of a healthy narrow encoder lie close together, too (0.12 to
0.28 of the isotropic spread in small ViTs with a kNN accuracy of 0.65 to 0.9), so a spread is low only if it also fell
below LEFT_LOW of the largest spread of the run."""
LEFT_LOW = 0.25
RANK_GONE, RANK_LOW = 1.2, 0.25
"""A rank below RANK_LOW times the highest rank of the run is a dimensional collapse."""
ACCURACY_GONE, ACCURACY_LOW = 0.25, 0.6
"""Shares of the best accuracy of the run, below which the accuracy is ``gone`` or ``low``."""
KEPT = 0.9
"""Share of the best accuracy that counts as kept, if the untrained encoder was not evaluated."""
GAINED_SE, GAINED = 2.0, 0.05
"""An accuracy has risen since the first evaluation if it is higher by this many standard errors, or by this much if the
number of samples is unknown."""
AT_CHANCE = 0.01
LOSS_WINDOW = 50
ALIKE = 0.05
"""BYOL's loss (0 to 8) below which the outputs of all images agree as well as the two of one image: their cosine is
above 0.987. Its runs that train well end at 0.2 to 0.5."""


@dataclass(frozen=True, slots=True)
class Sign:
    """One sign of collapse.

    ``state``: ``gone``, ``low``, ``healthy`` or ``not judged``. ``since``: first iteration of that state. ``value``:
    the value at the end. ``healthy``: the level it is compared with. ``reason``: why the sign is not judged.
    """

    name: str
    state: str
    since: int | None = None
    value: float | None = None
    healthy: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Collapse:
    """``verdict``: ``collapsed``, ``partly``, ``not`` or ``not judged``. ``iteration``: where the collapse begins."""

    verdict: str
    iteration: int | None
    reason: str
    signs: tuple[Sign, ...] = ()


def find_collapse(
    series: RunSeries,
    accuracy: tuple[str, EvalCurve] | None = None,
    *,
    why: str = "the judged metric is not an accuracy",
) -> Collapse:
    """Judge a run by every sign that was measured.

    ``accuracy``: name and curve of the judged metric if it is a share for which higher is better; else None, and
    ``why`` says why it is not judged.
    """
    signs = (
        _spread(series),
        _rank(series),
        _loss(series),
        _accuracy(accuracy, why),
    )
    judged = [sign for sign in signs if sign.state != "not judged"]
    if not judged:
        lacking = "; ".join(f"{sign.name}: {sign.reason}" for sign in signs)
        return Collapse("not judged", None, lacking, signs)
    gone = [sign for sign in judged if sign.state == "gone"]
    low = [sign for sign in judged if sign.state == "low"]
    features = [sign for sign in judged if sign.name in ("feature_spread", "feature_rank")]
    named = ", ".join(_described(sign) for sign in (*gone, *low))
    # A loss at chance level alone may mean that the run has not started to learn; a metric alone, that it diverged.
    # BYOL's is 0 there: no run starts so.
    alike = [sign for sign in gone if sign is signs[2] and sign.healthy == 0]
    sure = [sign for sign in gone if sign.name != "loss" or sign in alike]
    if (
        alike
        or any(sign in features for sign in sure)
        or (sure and len(gone) + len(low) > 1)
        or (sure and not features)
    ):
        since = min(sign.since for sign in sure if sign.since is not None)
        # Features that share one large component are nearly equal, and their differences may still tell classes apart.
        kept = _kept(accuracy, signs[3])
        return Collapse("partly" if kept else "collapsed", since, named + (f"; but {kept}" if kept else ""), signs)
    lasting = [sign for sign in (*gone, *low) if sign in features or sign is signs[3]]
    if len(lasting) == 3:  # spread, rank and accuracy all fell
        return Collapse("collapsed", max(sign.since for sign in lasting if sign.since is not None), named, signs)
    # A single low sign of the features with a healthy accuracy is not a collapse: accuracy is what matters in the end.
    alone = not gone and len(low) == 1 and low[0] in features and signs[3].state == "healthy"
    if (gone or low) and not alone:
        return Collapse("partly", min(s.since for s in (*gone, *low) if s.since is not None), named, signs)
    names = ", ".join(sign.name for sign in judged)
    return Collapse("not", None, f"judged by {names}", signs)


def chance_loss(facts: Mapping[str, str | float]) -> float | None:
    """The loss when all features are identical: 4 tau ln N for MoCo v3, ln(2N - 1) for SimCLR, 0 for BYOL. None for
    other methods.

    ``facts``: ``method``, ``batch_size`` and ``temperature`` of the run.

    >>> round(chance_loss({"method": "simclr", "batch_size": 256}), 3)
    6.236
    """
    if facts.get("method") == "byol":
        return 0.0
    batch, temperature = facts.get("batch_size"), facts.get("temperature")
    if not isinstance(batch, (int, float)) or batch < 2:
        return None
    if facts.get("method") == "mocov3" and isinstance(temperature, (int, float)):
        return 4 * float(temperature) * math.log(batch)
    return math.log(2 * batch - 1) if facts.get("method") == "simclr" else None


def _described(sign: Sign) -> str:
    healthy = "" if sign.healthy is None else f" of {sign.healthy:.3g}"
    at_chance = "0: all outputs are alike" if sign.healthy == 0 else "at its chance level"
    level = at_chance if sign.name == "loss" else f"{sign.value:.3g}{healthy}"
    return f"{sign.name} {level} since {sign.since}"


def _spread(series: RunSeries) -> Sign:
    curve = series.scalars.get("feature_spread")
    values, iteration, why = _usable(curve)
    if why:
        return Sign("feature_spread", "not judged", reason=why)
    dims = series.scalars.get("feature_dim")
    isotropic = 1 / math.sqrt(float(dims[1][-1])) if dims is not None and len(dims[1]) else float(values.max())
    share, reached = values / isotropic, values / max(float(values.max()), 1e-12)
    gone, low = share < SPREAD_GONE, (share < SPREAD_LOW) & (reached < LEFT_LOW)
    for state, holds in (("gone", gone), ("low", gone | low)):
        since = _since(iteration, holds)
        if since is not None:
            return Sign("feature_spread", state, since, float(values[-1]), isotropic)
    return Sign("feature_spread", "healthy", None, float(values[-1]), isotropic)


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
        return Sign("loss", "not judged", reason="its chance level is unknown")
    if curve is None or np.isfinite(curve[1]).sum() < LOSS_WINDOW * LAST:
        return Sign("loss", "not judged", reason=f"fewer than {LOSS_WINDOW * LAST} values")
    iteration, loss = curve[0][np.isfinite(curve[1])], curve[1][np.isfinite(curve[1])]
    blocks = len(loss) // LOSS_WINDOW
    medians = np.median(loss[: blocks * LOSS_WINDOW].reshape(blocks, LOSS_WINDOW), axis=1)
    starts = iteration[: blocks * LOSS_WINDOW : LOSS_WINDOW]
    since = _since(starts, medians < ALIKE if chance == 0 else medians > (1 - AT_CHANCE) * chance)
    return Sign("loss", "healthy" if since is None else "gone", since, float(medians[-1]), chance)


def _accuracy(judged: tuple[str, EvalCurve] | None, why_not: str) -> Sign:
    if judged is None:
        return Sign("accuracy", "not judged", reason=why_not)
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
    share[: peak + 1] = 1.0  # values before the best one are not a fall
    return _state(name, iteration, values, share, ACCURACY_GONE, ACCURACY_LOW, best)


def _kept(judged: tuple[str, EvalCurve] | None, sign: Sign) -> str:
    """How the accuracy shows that the features still differ; empty if it does not: the run must have kept an accuracy
    that it gained."""
    if judged is None or sign.state != "healthy":
        return ""
    curve = judged[1]
    values, iteration, _ = _usable((curve.iteration, curve.value))
    first, last, best = float(values[0]), float(np.median(values[-LAST:])), float(values.max())
    if iteration[0] > 0:  # the accuracy of the untrained encoder is unknown
        return f"{sign.name} is at {last:.2g}, near its best of {best:.2g}" if last >= KEPT * best else ""
    samples = int(np.max(curve.num_samples, initial=0))
    margin = GAINED
    if samples > 0:
        margin = GAINED_SE * math.sqrt(sum(max(p * (1 - p), 0.0) for p in (first, last)) / samples)
    return f"{sign.name} rose from {first:.2g} to {last:.2g}" if last > first + margin else ""


def _state(
    name: str, iteration: np.ndarray, values: np.ndarray, share: np.ndarray, gone: float, low: float, healthy: float
) -> Sign:
    for state, limit in (("gone", gone), ("low", low)):
        since = _since(iteration, share < limit)
        if since is not None:
            return Sign(name, state, since, float(values[-1]), healthy)
    return Sign(name, "healthy", None, float(values[-1]), healthy)


def _since(iteration: np.ndarray, holds: np.ndarray) -> int | None:
    """First iteration from which ``holds`` (n,) is true until the end; None if the last values are not all true."""
    if len(holds) < LAST or not holds[-LAST:].all():
        return None
    broken = np.flatnonzero(~holds)
    return int(iteration[broken[-1] + 1 if len(broken) else 0])


def _usable(curve: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Finite values in order of iteration, their iterations, and the reason if they are too few (else empty)."""
    if curve is None or len(curve[0]) == 0:
        return np.array([]), np.array([]), "not recorded"
    iteration, value = np.asarray(curve[0]), np.asarray(curve[1], dtype=np.float64)
    keep = np.isfinite(value)
    iteration, value = iteration[keep], value[keep]
    order = np.argsort(iteration, kind="stable")
    iteration, value = iteration[order], value[order]
    if len(value) < MIN_EVALUATIONS:
        return value, iteration, f"{len(value)} values; at least {MIN_EVALUATIONS} are needed"
    return value, iteration, ""
