"""When events begin, peak and how long they last, against the definitions written as loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from stabilitylab.analysis.detection.timing import ONSET_HEIGHT, Ranges, longest_of, onsets_of, peaks_of


@pytest.mark.parametrize("seed", range(20))
def test_all_events_at_once_as_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 400
    edges = np.sort(rng.choice(n, 20, replace=False))
    runs = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    runs[3] = (runs[3][0], runs[4][0])  # two events that touch
    height = np.round(rng.normal(3, 2, n), 1)  # ties
    height[rng.random(n) < 0.1] = np.nan
    for start, _ in runs:
        height[start] = 4.0
    score = np.where(np.isnan(height), -np.inf, height)
    ranges = Ranges.of(runs)
    peaks, onsets = peaks_of(height, ranges), onsets_of(score[ranges.at], ranges)
    longest = longest_of(score[ranges.at], 3.0, ranges)
    for i, (start, stop) in enumerate(runs):
        own = score[start:stop].tolist()
        assert peaks[i] == start + own.index(max(own))
        known = [value for value in own if value > -np.inf]
        pairs = [min(pair) for pair in pairwise(known)]
        level = max([*pairs, max(known) / 2])
        assert onsets[i] == start + next(j for j, value in enumerate(own) if value >= ONSET_HEIGHT * level)
        count = best = 0
        for value in own:
            count = count + 1 if value >= 3.0 else 0
            best = max(best, count)
        assert longest[i] == max(best, 1)
