"""Thresholds of spike detection, calibrated to a false-alarm rate.

The noise is estimated from the *downward* excursions of the same series (the mirrored scores), which contain no spikes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.skew import heads, high_quantile
from stabilitylab.analysis.detection.tails import MIN_PEAKS, Tail, fit_tail

MAX_PEAKS = 400
PEAK_SHARE = 0.02
IN_A_ROW = (1, 2, 4, 8)
"""An event opens with one very high score or with this many consecutive lower ones (the run rules of quality control:
Western Electric, 1956). In heavy-tailed noise, single values of 8 sd are common, but two consecutive ones are rare."""


def thresholds_of(mirrored: np.ndarray, settings: SpikeSettings) -> dict[int, float]:
    """Number of consecutive scores -> the threshold that all of them must pass.

    The thresholds together let noise open events at ``settings.false_alarms_per_10k``. Each is fitted to the
    declustered peaks of the running minimum of ``mirrored`` (n,).
    """
    n = np.count_nonzero(np.isfinite(mirrored))
    keep = min(MAX_PEAKS, int(PEAK_SHARE * n))
    if settings.false_alarms_per_10k is None or keep < 1:
        return {1: settings.z_open}
    wanted = settings.false_alarms_per_10k * n / 10_000
    tails: dict[int, tuple[float, Tail, np.ndarray]] = {}
    unreached: list[int] = []
    lowest, before = mirrored, 1
    for count in IN_A_ROW:
        if count > 1:
            lowest, before = lowest_of(lowest, count // before, apart=before), count  # a minimum of 8 is one of two 4s
            if wanted >= 3 and lowest.max() < settings.z_close:
                unreached.append(count)  # no tail is needed: noise does not reach z_close
                continue
        quantile = high_quantile(lowest, keep)
        if quantile is None:
            break
        above = np.flatnonzero(lowest > quantile)
        first = heads(above, settings.merge_gap)
        if len(first) < MIN_PEAKS:
            break
        tails[count] = quantile, fit_tail(np.maximum.reduceat(lowest[above], first) - quantile), above
    if 1 not in tails:
        return {1: settings.z_open}
    passed = {count: quantile + tail.threshold(wanted) for count, (quantile, tail, _) in tails.items()}
    # Thresholds that noise can pass above z_close share the rate. A threshold that noise never passes needs no share.
    sharing = [c for c, z in passed.items() if np.isfinite(z) and (c == 1 or z > settings.z_close)]
    if len(sharing) > 1:
        anywhere = np.unique(np.concatenate([tails[count][2] for count in sharing]))
        apart = len(heads(anywhere, settings.merge_gap)) / float(
            np.mean([tails[count][1].num_peaks for count in sharing])
        )
        slopes = {count: tails[count][1].slope(passed[count] - tails[count][0]) for count in sharing}
        for count, share in _shares(slopes, passed, apart).items():
            passed[count] = tails[count][0] + tails[count][1].threshold(wanted * share)
    passed |= dict.fromkeys(unreached, settings.z_close)
    return {count: max(threshold, settings.z_close) for count, threshold in passed.items()}


def _shares(slopes: Mapping[int, float], passed: Mapping[int, float], apart: float) -> dict[int, float]:
    """Divide the rate between the thresholds so that the sum of their square roots is smallest. In heavy-tailed noise,
    single values get a large share and runs a small one.

    ``slopes``: how fast each threshold rises as its share shrinks. ``apart``: 1 if noise always passes all thresholds
    together, as it often does when autocorrelated; the number of thresholds if it never passes two together.

    The square root is a compromise: minimising the sum of the thresholds would detect fewer short spikes in
    autocorrelated noise, and minimising the sum of their logarithms fewer high single values.
    """
    gains = {count: slope / passed[count] ** 0.5 for count, slope in slopes.items()}
    parts = {count: gain / max(gains.values()) for count, gain in gains.items()}
    together = 1 + max(apart - 1, 0.0) / (len(parts) - 1) * (sum(parts.values()) - 1)
    return {count: part / together for count, part in parts.items()}


def lowest_of(score: np.ndarray, count: int, apart: int = 1) -> np.ndarray:
    """(n,) -> (n,): minimum of ``count`` scores, ``apart`` positions apart, starting at each; -inf where too few are
    left."""
    lowest = score.copy()
    for ahead in range(apart, min(count * apart, len(score) + 1), apart):
        np.minimum(lowest[:-ahead], score[ahead:], out=lowest[:-ahead])
        lowest[-ahead:] = -np.inf
    return lowest
