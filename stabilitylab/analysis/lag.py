"""How long after a spike in one layer another layer spikes, and whether chance would do the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binom

from stabilitylab.analysis.results import Lag, LayerLag, Spike

WINDOW = 100  # iterations to either side in which onsets may match
MIN_MATCHES = 5
_NUM_SHIFTS = 999
_BIN = 11  # iterations: how sharply matching lags must agree to count as one lag


def measure_lag(
    from_spikes: Sequence[Spike],
    to_spikes: Sequence[Spike],
    *,
    source: str,
    target: str,
    num_iterations: int,
    window: int = WINDOW,
    seed: int = 0,
) -> Lag:
    """Median lag of ``target`` behind ``source`` with a 95% interval and a circular-shift p-value.

    Each onset is matched with the nearest in the other layer, if it is that one's nearest too. The interval is the
    exact order-statistic interval of a median. The p-value asks whether lags agree with each other more than when
    one series is shifted around the circle of ``num_iterations``.
    """
    a, b = _onsets(from_spikes), _onsets(to_spikes)
    lags = match_onsets(a, b, window)
    common = {"source": source, "target": target, "num_matched": len(lags), "num_from": len(a)}
    if len(lags) < MIN_MATCHES:
        reason = f"{len(lags)} matched spikes; at least {MIN_MATCHES} are needed"
        return Lag(**common, median_iterations=None, ci95=None, p_value=None, verdict="inconclusive", reason=reason,
                   lags=tuple(lags.tolist()))  # fmt: skip
    interval = median_interval(lags)
    p_value, null_lags = _shift_test(a, b, num_iterations, window, seed)
    verdict, reason = _verdict(interval, p_value)
    return Lag(
        **common,
        median_iterations=float(np.median(lags)),
        ci95=interval,
        p_value=p_value,
        verdict=verdict,
        reason=reason,
        lags=tuple(lags.tolist()),
        null_lags=tuple(null_lags.tolist()),
    )


def propagation(
    spikes: Sequence[Spike], layers: Sequence[tuple[str, int]], source: str, window: int = WINDOW
) -> tuple[LayerLag, ...]:
    """Median lag of each of ``layers`` (name, depth) behind ``source``."""
    by_layer: dict[str, list[Spike]] = {name: [] for name, _ in layers}
    for spike in spikes:
        by_layer[spike.layer].append(spike)
    a = _onsets(by_layer[source])
    rows = []
    for name, depth in layers:
        if name == source:
            rows.append(LayerLag(name, depth, 0.0 if len(a) else None, len(a)))
            continue
        lags = match_onsets(a, _onsets(by_layer[name]), window)
        enough = len(lags) >= MIN_MATCHES
        median = float(np.median(lags)) if enough else None
        rows.append(LayerLag(name, depth, median, len(lags), median_interval(lags) if enough else None))
    return tuple(rows)


def match_onsets(a: np.ndarray, b: np.ndarray, window: int) -> np.ndarray:
    """Lags b - a of mutually nearest onsets at most ``window`` apart. ``a``, ``b`` sorted."""
    if not len(a) or not len(b):
        return np.empty(0)
    nearest_b, nearest_a = _nearest(a, b), _nearest(b, a)
    mutual = nearest_a[nearest_b] == np.arange(len(a))
    lags = b[nearest_b[mutual]] - a[mutual]
    return lags[np.abs(lags) <= window].astype(float)


def _nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each of ``a`` the index of the nearest in ``b``."""
    right = np.searchsorted(b, a).clip(1, max(1, len(b) - 1))
    if len(b) == 1:
        return np.zeros(len(a), int)
    left = right - 1
    return np.where(np.abs(b[left] - a) <= np.abs(b[right] - a), left, right)


def median_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Order-statistic interval of the median: no distribution assumed, exact for independent values.

    With 5 values it is their range, which covers 93.75%.
    """
    ordered = np.sort(values)
    n = len(ordered)
    low = max(int(binom.ppf((1 - level) / 2, n, 0.5)), 1)
    return float(ordered[low - 1]), float(ordered[n - low])


def _shift_test(a: np.ndarray, b: np.ndarray, n: int, window: int, seed: int) -> tuple[float, np.ndarray]:
    """p-value of the agreement of lags, and matched lags under the null, for drawing."""
    rng = np.random.default_rng(seed)
    observed = _agreement(a, b, window)
    # A shift of less than two windows keeps true pairs matched, only at another lag: that is no null.
    nearest = min(2 * window, n // 3)
    shifts = rng.integers(nearest, max(n - nearest, nearest + 1), _NUM_SHIFTS)
    null_lags: list[np.ndarray] = []
    at_least = 0
    for index, shift in enumerate(shifts):
        moved = np.sort((b + shift) % max(n, 1))
        at_least += _agreement(a, moved, window) >= observed
        if index < 100:
            null_lags.append(match_onsets(a, moved, window))
    return (1 + at_least) / (1 + _NUM_SHIFTS), np.concatenate(null_lags)


def _agreement(a: np.ndarray, b: np.ndarray, window: int) -> int:
    """The most pairs whose lags fall within one bin of ``_BIN`` iterations: the height of the cross-correlogram."""
    lags = (b[None, :] - a[:, None]).ravel()
    lags = np.sort(lags[np.abs(lags) <= window])
    if not len(lags):
        return 0
    return int((np.searchsorted(lags, lags + _BIN, side="left") - np.arange(len(lags))).max())


def _verdict(interval: tuple[float, float], p_value: float) -> tuple[str, str]:
    low, high = interval
    if p_value >= 0.05:
        return "inconclusive", f"chance alone lines spikes up as well (p = {p_value:.2g})"
    if low > 0:
        return "first leads", ""
    if high < 0:
        return "last leads", ""
    if high - low <= _BIN:
        return "together", "the interval holds 0 and is narrow"
    return "inconclusive", f"the interval {low:g} to {high:g} holds both orders"


def _onsets(spikes: Sequence[Spike]) -> np.ndarray:
    return np.array(sorted(s.onset for s in spikes if s.kind == "spike"), np.int64)
