"""How long a spike takes from one layer to another.

Matching each onset with the nearest one is biased towards 0 as soon as spikes are missed or lie close:
the nearest is then another spike. So the lag at which most onsets pair up is found first, over all pairs
within the window, and onsets are matched around it.
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
"""Pairs whose lags differ by no more than this count as the same lag when the common one is sought."""
REACH = 15
"""A match may lie this far from the common lag: three times a jitter of 5 iterations."""
NULL_SHIFTS = 199


@dataclass(frozen=True, slots=True)
class Reach:
    """How far matching looks, in iterations: ``window`` for any pair, ``bandwidth`` for lags that count as the same,
    ``around`` the common lag. Wider where rows lie farther apart: two neighbouring rows may show one lag."""

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
    """Median lag from ``source`` to ``target`` with a 95% interval and a p-value.

    The interval is that of the order statistics (sign test): it needs no distribution and holds at five
    matches, where a bootstrap of the median does not. The p-value compares how many onsets pair up with
    what circular shifts of one layer give. ``cross`` is the second estimate, which the first is held against.
    ``timelines``: what was recorded of source and target; None means every iteration. Where rows lie farther apart, the
    interval is wider by what each pair of rows leaves open, and an order within that is not claimed.
    """
    a, b = _onsets(from_spikes), _onsets(to_spikes)
    rows = timelines or (Timeline.of(np.arange(0)), Timeline.of(np.arange(0)))
    step = max(line.step for line in rows)
    reach = Reach.of(step, num_iterations, window)

    def undecided(reason: str, matched: int = 0) -> Lag:
        return Lag(
            source, target, None, None, None, matched, len(a), "inconclusive", reason, cross=cross, resolution=step
        )

    if source == target:
        return undecided(f"only one layer has a gradient ({source}): a lag needs two")
    if len(a) == 0 or len(b) == 0:
        return undecided(f"no spike in {source if len(a) == 0 else target}")
    one, other = match_pairs(a, b, reach)
    lags = (b[other] - a[one]).astype(np.float64)
    if len(lags) < MIN_MATCHES:
        spikes = "spike" if len(lags) == 1 else "spikes"
        return undecided(
            f"{len(lags)} {spikes} of {source} ({len(a)}) matched one of {target} ({len(b)}) within {reach.window} "
            f"iterations; at least {MIN_MATCHES} are needed",
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
    """The interval of the median of the true lags, each of which lies between ``lags - before_target`` and ``lags +
    before_source`` (k,): an event began up to so many iterations before the row that shows it."""
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
    """The median lag of every layer (name, depth) behind ``source``. The source itself has neither p nor ``cross``.
    ``timelines``: what was recorded of each layer; None means every iteration."""
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
        step = max(start.step, line.step)
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
    """Lags (k,) of onsets ``a`` and ``b`` (sorted) paired one to one around the lag most of them share."""
    one, other = match_pairs(a, b, Reach(window))
    return (b[other] - a[one]).astype(np.float64)


def match_pairs(a: np.ndarray, b: np.ndarray, reach: Reach) -> tuple[np.ndarray, np.ndarray]:
    """Indices (k,) into ``a`` and ``b`` (sorted) of onsets paired one to one around the lag most of them share."""
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
    """All b - a within the window, sorted. ``a`` and ``b`` are sorted."""
    low = np.searchsorted(b, a - window, side="left")
    count = np.searchsorted(b, a + window, side="right") - low
    first = np.repeat(np.arange(len(a)), count)
    offset = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    return np.sort(b[low[first] + offset] - a[first])


def common_lag(pairs: np.ndarray, bandwidth: int = BANDWIDTH) -> float:
    """The middle of the densest stretch of 2 x ``bandwidth`` among sorted lags; the least lag among equals."""
    stop = np.searchsorted(pairs, pairs + 2 * bandwidth, side="right")
    count = stop - np.arange(len(pairs))
    best = np.flatnonzero(count == count.max())
    middles = [float(np.median(pairs[i : stop[i]])) for i in best]
    return min(middles, key=abs)


def shift_test(a: np.ndarray, b: np.ndarray, reach: Reach, span: int) -> tuple[float, tuple[float, ...]]:
    """How often a circular shift of ``b`` pairs up as many onsets at one lag, over every shift that moves all pairs
    out of the window. Also the lag at which most pair up under 199 of the shifts."""
    span = max(span, int(max(a.max(), b.max())) + 1)
    window, wide = reach.window, reach.bandwidth
    near = max(window - wide, 0)
    pairs = unrolled(circular_differences(a, b, span), span, 2 * window + wide)
    most = int(count_within(pairs, np.arange(-near, near + 1), wide).max())
    low, high = 2 * window + 1, span - 2 * window
    if high <= low:
        low, high = 1, span
    # Any `most` differences in a row that lie close enough make the shifts around them as good as the truth.
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
    """Verdict and reason. ``shown`` is the interval that the recorded rows would give by themselves, ``ci95`` with what
    lies between them."""
    if p_value >= 0.05:
        return "inconclusive", f"as many spikes pair up by chance (p = {p_value:.2g})"
    if ci95[0] > 0:
        return "first leads", f"the interval lies after 0: {target} follows {source}"
    if ci95[1] < 0:
        return "last leads", f"the interval lies before 0: {source} follows {target}"
    if step > 1 and not (shown[0] < -step and shown[1] > step):
        return (
            "not resolvable",
            f"the spikes belong together, but rows are {step} iterations apart: a lag below that cannot be told",
        )
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
