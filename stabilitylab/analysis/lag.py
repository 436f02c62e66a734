"""The lag between the spikes of two layers.

Matching each onset with the nearest one is biased towards 0 when spikes are missed or close together, because the
nearest onset may belong to another spike. Therefore the most common lag over all pairs within the window is estimated
first, and onsets are then matched around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.intervals import median_interval
from stabilitylab.analysis.results import CrossLag, Lag, LayerLag, Spike
from stabilitylab.analysis.shifts import circular_differences, count_within, covered, unrolled
from stabilitylab.analysis.timeline import Timeline

WINDOW = 100
MIN_MATCHES = 5
BANDWIDTH = 5
"""In iterations: pairs whose lags differ by at most this count as the same lag when the most common one is chosen."""
REACH = 15
"""In iterations: largest distance of a match from the common lag, three times a jitter of 5 iterations."""
NULL_SHIFTS = 199


@dataclass(frozen=True, slots=True)
class Reach:
    """Tolerances of matching, in iterations: ``window``, the largest lag of a pair; ``bandwidth``, the difference up to
    which lags count as equal; ``around``, the distance from the common lag. They are wider for sparse rows, where the
    same lag may appear in two neighbouring rows."""

    window: int
    bandwidth: int = BANDWIDTH
    around: int = REACH

    @classmethod
    def of(cls, step: int, num_iterations: int, window: int = WINDOW) -> Reach:
        wide = max(window, 2 * step) if step > 1 else window
        wide = min(wide, max(num_iterations // 5, 1))
        return cls(wide) if step <= 1 else cls(wide, max(BANDWIDTH, step), REACH + step)


def measure_lag(
    from_spikes: Sequence[Spike],
    to_spikes: Sequence[Spike],
    *,
    source: str,
    target: str,
    num_iterations: int,
    window: int = WINDOW,
    cross: CrossLag | None = None,
    timelines: tuple[Timeline, Timeline] | None = None,
) -> Lag:
    """Median lag from ``source`` to ``target`` in iterations, with a 95% interval and a p-value.

    ``num_iterations``: iterations of the run. ``window``: largest lag considered. ``cross``: estimate by
    cross-correlation, to compare with. ``timelines``: the recorded iterations of source and target; None means every
    iteration. With sparse rows, the interval includes the time between rows, and no order within it is claimed.

    The interval uses order statistics (sign test): it is distribution-free and valid with five matches, where a
    bootstrap of the median is not. The p-value compares the number of matches with circular shifts of one layer.
    """
    a, b = _onsets(from_spikes), _onsets(to_spikes)
    rows = timelines or (Timeline.of(np.arange(0)), Timeline.of(np.arange(0)))
    step = max(line.mostly for line in rows)
    reach = Reach.of(step, num_iterations, window)

    def undecided(reason: str, matched: int = 0) -> Lag:
        return Lag(
            source, target, None, None, None, matched, len(a), "inconclusive", reason, cross=cross, resolution=step
        )

    if source == target:
        return undecided(f"only one layer has a gradient ({source}); a lag needs two layers")
    if len(a) == 0 or len(b) == 0:
        return undecided(f"no spike in {source if len(a) == 0 else target}")
    one, other = match_pairs(a, b, reach)
    lags = (b[other] - a[one]).astype(np.float64)
    if len(lags) < MIN_MATCHES:
        spikes = "spike" if len(lags) == 1 else "spikes"
        return undecided(
            f"{len(lags)} {spikes} of {source} ({len(a)} in total) matched one of {target} ({len(b)} in total) within "
            f"{reach.window} iterations; at least {MIN_MATCHES} are needed",
            len(lags),
        )
    median = float(np.median(lags))
    shown = median_interval(lags)
    ci95 = widened(lags, rows[0].uncertainty(a[one]), rows[1].uncertainty(b[other]))
    p_value, null_lags = shift_test(*_on_clock(a, b, rows[0]), reach, rows[0].span or num_iterations)
    verdict, reason = verdict_of(source, target, ci95, p_value, shown, step)
    agree = None
    if cross is not None and p_value < 0.05:
        low, high = cross.ci95
        if low <= ci95[1] and ci95[0] <= high:
            agree = True
        elif cross.p_value < 0.05:
            agree = False
            reason += f"; but cross-correlation disagrees: {cross.lag:g} iterations ({low:g} to {high:g})"
    return Lag(
        source,
        target,
        median,
        ci95,
        p_value,
        len(lags),
        len(a),
        verdict,
        reason,
        tuple(lags.tolist()),
        null_lags,
        cross,
        agree,
        step,
    )


def widened(lags: np.ndarray, before_source: np.ndarray, before_target: np.ndarray) -> tuple[float, float]:
    """Interval of the median of the true lags, each between ``lags - before_target`` and ``lags + before_source`` (k,):
    an event may begin up to that many iterations before the row that shows it."""
    return median_interval(lags - before_target)[0], median_interval(lags + before_source)[1]


def propagation(
    spikes: Sequence[Spike],
    layers: Sequence[tuple[str, int]],
    *,
    source: str,
    num_iterations: int,
    window: int = WINDOW,
    cross: Mapping[str, CrossLag | None] | None = None,
    timelines: Mapping[str, Timeline] | None = None,
) -> tuple[LayerLag, ...]:
    """Median lag of every layer behind ``source``, in the order of ``layers`` (name, depth).

    The row of the source itself has neither a p-value nor ``cross``. ``timelines``: the recorded iterations of each
    layer; None means every iteration.
    """
    by_layer: dict[str, list[Spike]] = {}
    for spike in spikes:
        by_layer.setdefault(spike.layer, []).append(spike)
    first = _onsets(by_layer.get(source, []))
    dense = Timeline.of(np.arange(0))
    start = (timelines or {}).get(source, dense)
    rows = []
    for name, depth in layers:
        onsets = _onsets(by_layer.get(name, []))
        line = (timelines or {}).get(name, dense)
        step = max(start.mostly, line.mostly)
        reach = Reach.of(step, num_iterations, window)
        one, other = match_pairs(first, onsets, reach)
        lags = (onsets[other] - first[one]).astype(np.float64)
        median = float(np.median(lags)) if len(lags) else None
        if len(lags) < MIN_MATCHES:
            rows.append(LayerLag(name, depth, median, len(lags), cross=cross.get(name) if cross else None))
            continue
        if name == source:
            rows.append(LayerLag(name, depth, median, len(lags), median_interval(lags), verdict="together"))
            continue
        interval = widened(lags, start.uncertainty(first[one]), line.uncertainty(onsets[other]))
        p_value = shift_test(*_on_clock(first, onsets, start), reach, start.span or num_iterations)[0]
        verdict = verdict_of(source, name, interval, p_value, median_interval(lags), step)[0]
        second = cross.get(name) if cross else None
        rows.append(LayerLag(name, depth, median, len(lags), interval, p_value, second, verdict))
    return tuple(rows)


def match(a: np.ndarray, b: np.ndarray, window: int) -> np.ndarray:
    """Lags (k,) of onsets ``a`` and ``b`` (sorted), paired one to one around their most common lag.

    >>> match(np.array([100, 300, 500]), np.array([130, 331, 529]), window=100)
    array([30., 31., 29.])
    """
    one, other = match_pairs(a, b, Reach(window))
    return (b[other] - a[one]).astype(np.float64)


def match_pairs(a: np.ndarray, b: np.ndarray, reach: Reach) -> tuple[np.ndarray, np.ndarray]:
    """Indices (k,) into ``a`` and ``b`` (sorted) of onsets paired one to one around their most common lag."""
    pairs = differences(a, b, reach.window)
    if len(pairs) == 0:
        return np.arange(0), np.arange(0)
    return pairs_around(a, b, common_lag(pairs, reach.bandwidth), reach)


def pairs_around(a: np.ndarray, b: np.ndarray, centre: float, reach: Reach) -> tuple[np.ndarray, np.ndarray]:
    """Indices (k,) into ``a`` and ``b`` (sorted, neither empty) of onsets paired one to one around the lag
    ``centre``."""
    forth = _nearest(a + centre, b)
    back = _nearest(b - centre, a)
    lags = b[forth] - a
    mutual = back[forth] == np.arange(len(a))
    kept = np.flatnonzero(mutual & (np.abs(lags - centre) <= reach.around) & (np.abs(lags) <= reach.window))
    return kept, forth[kept]


def differences(a: np.ndarray, b: np.ndarray, window: int) -> np.ndarray:
    """All differences b - a within the window, sorted. ``a`` and ``b`` are sorted."""
    low = np.searchsorted(b, a - window, side="left")
    count = np.searchsorted(b, a + window, side="right") - low
    first = np.repeat(np.arange(len(a)), count)
    offset = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    return np.sort(b[low[first] + offset] - a[first])


def common_lag(pairs: np.ndarray, bandwidth: int = BANDWIDTH) -> float:
    """Median of the densest interval of width 2 x ``bandwidth`` among sorted lags; of several, the smallest lag."""
    stop = np.searchsorted(pairs, pairs + 2 * bandwidth, side="right")
    count = stop - np.arange(len(pairs))
    best = np.flatnonzero(count == count.max())
    middles = [float(np.median(pairs[i : stop[i]])) for i in best]
    return min(middles, key=abs)


def shift_test(a: np.ndarray, b: np.ndarray, reach: Reach, span: int) -> tuple[float, tuple[float, ...]]:
    """p-value: the share of circular shifts of ``b`` under which at least as many onsets share one lag.

    Considers every shift that moves all pairs out of the window. Also returns the most common lags under 199 of the
    shifts.
    """
    span = max(span, int(max(a.max(), b.max())) + 1)
    window, wide = reach.window, reach.bandwidth
    near = max(window - wide, 0)
    pairs = unrolled(circular_differences(a, b, span), span, 2 * window + wide)
    most = int(count_within(pairs, np.arange(-near, near + 1), wide).max())
    low, high = 2 * window + 1, span - 2 * window
    if high <= low:
        low, high = 1, span
    # Wherever `most` consecutive differences fit into the bandwidth, the shifts around them match as many onsets.
    if most == 0:
        reached = high - low
    else:
        first, last = pairs[: len(pairs) - most + 1], pairs[most - 1 :]
        close = last - first <= 2 * wide
        reached = covered(last[close] - wide - near, first[close] + wide + near, low, high)
    p_value = (1 + reached) / (1 + high - low)
    shown = np.linspace(low, high - 1, min(NULL_SHIFTS, high - low)).astype(np.int64)
    moves = np.arange(-near, near + 1)
    around = count_within(pairs, shown[:, None] + moves, wide)
    best = around == around.max(axis=1, keepdims=True)
    lags = moves[np.argmin(np.where(best, np.abs(moves), span), axis=1)]
    return p_value, tuple(lags[around.max(axis=1) > 0].astype(float).tolist())


def _on_clock(a: np.ndarray, b: np.ndarray, line: Timeline) -> tuple[np.ndarray, np.ndarray]:
    return line.times(a), line.times(b)


def verdict_of(
    source: str, target: str, ci95: tuple[float, float], p_value: float, shown: tuple[float, float], step: int
) -> tuple[str, str]:
    """Verdict and reason. ``shown``: interval of the recorded lags alone. ``ci95``: interval that includes the time
    between rows."""
    if p_value >= 0.05:
        return "inconclusive", f"as many spikes match by chance (p = {p_value:.2g})"
    if ci95[0] > 0:
        return "first leads", f"the interval is above 0: {target} follows {source}"
    if ci95[1] < 0:
        return "last leads", f"the interval is below 0: {source} follows {target}"
    if step > 1 and not (shown[0] < -step and shown[1] > step):
        return (
            "not resolvable",
            f"the spikes coincide, but rows are {step} iterations apart: a shorter lag cannot be resolved",
        )
    return "together", "the spikes coincide and the interval contains 0"


def _onsets(spikes: Sequence[Spike]) -> np.ndarray:
    return np.unique(np.array([spike.onset for spike in spikes], dtype=np.int64))


def _nearest(wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Index into sorted ``among`` of the value nearest to each of ``wanted``."""
    right = np.clip(np.searchsorted(among, wanted), 1, max(len(among) - 1, 1))
    if len(among) == 1:
        return np.zeros(len(wanted), dtype=np.int64)
    left = right - 1
    return np.where(np.abs(among[left] - wanted) <= np.abs(among[right] - wanted), left, right)
