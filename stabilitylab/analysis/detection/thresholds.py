"""How far up a series must go for a spike, so that chance goes there no more often than the rate asked for.

Chance is learnt from the series' own *downward* excursions: the mirrored scores, which spikes do not touch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.skew import stretches
from stabilitylab.analysis.detection.tails import MIN_PEAKS, Tail, fit_tail

MAX_PEAKS = 400
PEAK_SHARE = 0.02
IN_A_ROW = (1, 2, 4, 8)
"""One value far up, or so many in a row less far (the run rules of quality control: Western Electric, 1956). Where
noise is heavy-tailed, single values of 8 sd are nothing; two in a row are hardly ever chance."""


def thresholds_of(mirrored: np.ndarray, settings: SpikeSettings) -> dict[int, float]:
    """How many in a row -> the score that all of them must pass, so that chance opens events at the rate asked for.

    Each is fitted to the declustered peaks of the mirrored scores' running minimum.
    """
    n = int(np.isfinite(mirrored).sum())
    keep = min(MAX_PEAKS, int(PEAK_SHARE * n))
    if settings.false_alarms_per_10k is None or keep < 1:
        return {1: settings.z_open}
    wanted = settings.false_alarms_per_10k * n / 10_000
    tails: dict[int, tuple[float, Tail, np.ndarray]] = {}
    never: list[int] = []
    lowest, before = mirrored, 1
    for count in IN_A_ROW:
        lowest, before = lowest_of(lowest, count // before, apart=before), count  # from the one before: 8 is twice 4
        if count > 1 and wanted >= 3 and lowest.max() < settings.z_close:
            never.append(count)  # no need of a tail: chance does not go so far
            continue
        quantile = float(np.partition(lowest, len(lowest) - keep)[len(lowest) - keep])
        above = lowest > quantile
        starts, stops = stretches(above, settings.merge_gap)
        if quantile <= 0 or len(starts) < MIN_PEAKS:
            break
        # Every second stretch lies between two peaks; one value more, for a peak that ends the series.
        edges = np.stack([starts, stops], 1).ravel()
        peaks = np.maximum.reduceat(np.append(lowest, -np.inf), edges)[::2]
        tails[count] = quantile, fit_tail(peaks - quantile), above
    if 1 not in tails:
        return {1: settings.z_open}
    passed = {count: quantile + tail.threshold(wanted) for count, (quantile, tail, _) in tails.items()}
    # Those that chance fills above z_close share the rate; one that no score passes has no need of it.
    sharing = [c for c, z in passed.items() if np.isfinite(z) and (c == 1 or z > settings.z_close)]
    if len(sharing) > 1:
        anywhere = stretches(np.logical_or.reduce([tails[count][2] for count in sharing]), settings.merge_gap)[0]
        apart = len(anywhere) / float(np.mean([tails[count][1].num_peaks for count in sharing]))
        slopes = {count: tails[count][1].slope(passed[count] - tails[count][0]) for count in sharing}
        for count, share in _shares(slopes, passed, apart).items():
            passed[count] = tails[count][0] + tails[count][1].threshold(wanted * share)
    passed |= dict.fromkeys(never, settings.z_close)
    return {count: max(threshold, settings.z_close) for count, threshold in passed.items()}


def _shares(slopes: Mapping[int, float], passed: Mapping[int, float], apart: float) -> dict[int, float]:
    """The part of the rate that each may take, such that the sum of the thresholds' square roots is least: single
    values of heavy-tailed noise need much, rows little. ``slopes``: how fast each threshold rises as its part shrinks.
    ``apart``: 1 where chance passes all of them at once, as it often does on autocorrelated noise; their number where
    never two.

    With the thresholds themselves (spikes of all heights alike) in place of their roots, rows would find fewer of the
    short spikes in autocorrelated noise; with their logarithms, single values fewer of the high ones.
    """
    gains = {count: slope / passed[count] ** 0.5 for count, slope in slopes.items()}
    parts = {count: gain / max(gains.values()) for count, gain in gains.items()}
    together = 1 + max(apart - 1, 0.0) / (len(parts) - 1) * (sum(parts.values()) - 1)
    return {count: part / together for count, part in parts.items()}


def lowest_of(score: np.ndarray, count: int, apart: int = 1) -> np.ndarray:
    """(n,) -> (n,): the lowest of ``count`` scores from each on, ``apart`` each; -inf where fewer are left."""
    lowest = score.copy()
    for ahead in range(apart, min(count * apart, len(score) + 1), apart):
        np.minimum(lowest[:-ahead], score[ahead:], out=lowest[:-ahead])
        lowest[-ahead:] = -np.inf
    return lowest
