"""How long a spike takes from one layer to another.

Matching each onset with the nearest one is biased towards 0 as soon as spikes are missed or lie close:
the nearest is then another spike. So the lag at which most onsets pair up is found first, over all pairs
within the window, and onsets are matched around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.ndimage import maximum_filter1d, uniform_filter1d

from stabilitylab.analysis.intervals import median_interval
from stabilitylab.analysis.results import CrossLag, Lag, LayerLag, Spike

WINDOW = 100
MIN_MATCHES = 5
BANDWIDTH = 5
"""Pairs whose lags differ by no more than this count as the same lag when the common one is sought."""
REACH = 15
"""A match may lie this far from the common lag: three times a jitter of 5 iterations."""
NULL_SHIFTS = 199


def measure_lag(
    from_spikes: Sequence[Spike],
    to_spikes: Sequence[Spike],
    *,
    source: str,
    target: str,
    num_iterations: int,
    window: int = WINDOW,
    cross: CrossLag | None = None,
) -> Lag:
    """Median lag from ``source`` to ``target`` with a 95% interval and a p-value.

    The interval is that of the order statistics (sign test): it needs no distribution and holds at five
    matches, where a bootstrap of the median does not. The p-value compares how many onsets pair up with
    what circular shifts of one layer give. ``cross`` is the second estimate, which the first is held against.
    """
    a, b = _onsets(from_spikes), _onsets(to_spikes)
    window = min(window, max(num_iterations // 5, 1))

    def undecided(reason: str, matched: int = 0) -> Lag:
        return Lag(source, target, None, None, None, matched, len(a), "inconclusive", reason, cross=cross)

    if source == target:
        return undecided(f"only one layer has a gradient ({source}): a lag needs two")
    if len(a) == 0 or len(b) == 0:
        return undecided(f"no spike in {source if len(a) == 0 else target}")
    lags = match(a, b, window)
    if len(lags) < MIN_MATCHES:
        spikes = "spike" if len(lags) == 1 else "spikes"
        return undecided(
            f"{len(lags)} {spikes} of {source} ({len(a)}) matched one of {target} ({len(b)}) within {window} "
            f"iterations; at least {MIN_MATCHES} are needed",
            len(lags),
        )
    median = float(np.median(lags))
    ci95 = median_interval(lags)
    p_value, null_lags = shift_test(a, b, window, num_iterations)
    verdict, reason = _verdict(source, target, ci95, p_value)
    agree = None
    if cross is not None and p_value < 0.05:
        low, high = cross.ci95
        if low <= ci95[1] and ci95[0] <= high:
            agree = True
        elif cross.p_value < 0.05:
            agree = False
            reason += f"; but cross-correlation disagrees: {cross.lag:g} iterations ({low:g} to {high:g})"
    shown = tuple(lags.tolist())
    return Lag(
        source, target, median, ci95, p_value, len(lags), len(a), verdict, reason, shown, null_lags, cross, agree
    )


def propagation(
    spikes: Sequence[Spike],
    layers: Sequence[tuple[str, int]],
    *,
    source: str,
    num_iterations: int,
    window: int = WINDOW,
    cross: Mapping[str, CrossLag | None] | None = None,
) -> tuple[LayerLag, ...]:
    """The median lag of every layer (name, depth) behind ``source``. The source itself has neither p nor ``cross``."""
    window = min(window, max(num_iterations // 5, 1))
    by_layer: dict[str, list[Spike]] = {}
    for spike in spikes:
        by_layer.setdefault(spike.layer, []).append(spike)
    first = _onsets(by_layer.get(source, []))
    rows = []
    for name, depth in layers:
        onsets = _onsets(by_layer.get(name, []))
        lags = match(first, onsets, window)
        enough = len(lags) >= MIN_MATCHES
        median = float(np.median(lags)) if len(lags) else None
        interval = median_interval(lags) if enough else None
        p_value = shift_test(first, onsets, window, num_iterations)[0] if enough and name != source else None
        second = cross.get(name) if cross and name != source else None
        rows.append(LayerLag(name, depth, median, len(lags), interval, p_value, second))
    return tuple(rows)


def match(a: np.ndarray, b: np.ndarray, window: int) -> np.ndarray:
    """Lags (k,) of onsets ``a`` and ``b`` (sorted) paired one to one around the lag most of them share."""
    pairs = differences(a, b, window)
    if len(pairs) == 0:
        return pairs
    centre = common_lag(pairs)
    forth = _nearest(a + centre, b)
    back = _nearest(b - centre, a)
    mutual = back[forth] == np.arange(len(a))
    lags = b[forth] - a
    return lags[mutual & (np.abs(lags - centre) <= REACH) & (np.abs(lags) <= window)].astype(np.float64)


def differences(a: np.ndarray, b: np.ndarray, window: int) -> np.ndarray:
    """All b - a within the window, sorted. ``a`` and ``b`` are sorted."""
    low = np.searchsorted(b, a - window, side="left")
    count = np.searchsorted(b, a + window, side="right") - low
    first = np.repeat(np.arange(len(a)), count)
    offset = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    return np.sort(b[low[first] + offset] - a[first])


def common_lag(pairs: np.ndarray) -> float:
    """The middle of the densest stretch of 2 x BANDWIDTH among sorted lags; the least lag among equals."""
    stop = np.searchsorted(pairs, pairs + 2 * BANDWIDTH, side="right")
    count = stop - np.arange(len(pairs))
    best = np.flatnonzero(count == count.max())
    middles = [float(np.median(pairs[i : stop[i]])) for i in best]
    return min(middles, key=abs)


def shift_test(a: np.ndarray, b: np.ndarray, window: int, num_iterations: int) -> tuple[float, tuple[float, ...]]:
    """How often a circular shift of ``b`` pairs up as many onsets at one lag, over every shift that moves all pairs
    out of the window. Also the lag at which most pair up under 199 of the shifts.

    All shifts at once: the pairs' differences, counted round the circle, and the highest count within reach.
    """
    span = max(num_iterations, int(max(a.max(), b.max())) + 1)
    reach = max(window - BANDWIDTH, 0)
    pairs = np.bincount(np.subtract.outer(b, a).ravel() % span, minlength=span).astype(np.float64)
    dense = np.rint(uniform_filter1d(pairs, 2 * BANDWIDTH + 1, mode="wrap") * (2 * BANDWIDTH + 1))
    highest = maximum_filter1d(dense, 2 * reach + 1, mode="wrap")
    low, high = 2 * window + 1, span - 2 * window
    if high <= low:
        low, high = 1, span
    shifted = highest[low:high]
    p_value = (1 + int((shifted >= highest[0]).sum())) / (1 + len(shifted))
    near = np.arange(-reach, reach + 1)
    shown = np.linspace(low, high - 1, min(NULL_SHIFTS, len(shifted))).astype(np.int64)
    around = dense[(shown[:, None] + near) % span]
    best = around == around.max(axis=1, keepdims=True)
    lags = near[np.argmin(np.where(best, np.abs(near), span), axis=1)]
    return p_value, tuple(lags[around.max(axis=1) > 0].astype(float).tolist())


def _verdict(source: str, target: str, ci95: tuple[float, float], p_value: float) -> tuple[str, str]:
    if p_value >= 0.05:
        return "inconclusive", f"as many spikes pair up by chance (p = {p_value:.2g})"
    if ci95[0] > 0:
        return "first leads", f"the interval lies after 0: {target} follows {source}"
    if ci95[1] < 0:
        return "last leads", f"the interval lies before 0: {source} follows {target}"
    return "together", "the spikes belong together and the interval holds 0"


def _onsets(spikes: Sequence[Spike]) -> np.ndarray:
    return np.unique(np.array([spike.onset for spike in spikes], dtype=np.int64))


def _nearest(wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Index into sorted ``among`` of the value nearest to each of ``wanted``."""
    right = np.clip(np.searchsorted(among, wanted), 1, max(len(among) - 1, 1))
    if len(among) == 1:
        return np.zeros(len(wanted), dtype=np.int64)
    left = right - 1
    return np.where(np.abs(among[left] - wanted) <= np.abs(among[right] - wanted), left, right)
