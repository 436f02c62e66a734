"""When the events of one series begin, peak, and how long they last, for all events at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.detection.skew import heads
from stabilitylab.analysis.detection.thresholds import lowest_of

ONSET_HEIGHT = 0.5
"""A spike's onset is where it first reaches this share of its height, as in a constant-fraction discriminator. With one
fixed level for all spikes, a high spike would seem to begin earlier than a low one of the same shape ("time walk"):
in simulations with slow spikes 0.4 times as high in the last layer, hardly any interval covered the true lag."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """Index ranges that do not overlap, joined into one array.

    ``at`` (total,): every index of every range. ``first`` (k,): where each range begins in ``at``. ``owner`` (total,):
    the range of each index.
    """

    at: np.ndarray
    first: np.ndarray
    owner: np.ndarray

    @classmethod
    def of(cls, runs: Sequence[tuple[int, int]]) -> Ranges:
        starts, stops = np.array(runs, dtype=np.int64).reshape(-1, 2).T
        lengths = stops - starts
        first = np.cumsum(lengths) - lengths
        owner = np.repeat(np.arange(len(starts)), lengths)
        return cls(np.arange(int(lengths.sum())) + (starts - first)[owner], first, owner)

    def highest(self, values: np.ndarray) -> np.ndarray:
        """(total,) -> (k,): the largest value of each range."""
        highest: np.ndarray = np.maximum.reduceat(values, self.first)
        return highest

    def first_where(self, mask: np.ndarray) -> np.ndarray:
        """(total,) -> (k,): the first index of each range at which ``mask`` holds. It holds in each."""
        hits = np.flatnonzero(mask)
        return self.at[hits[heads_of(self.owner[hits])]]


def heads_of(owner: np.ndarray) -> np.ndarray:
    """Positions at which a new value begins in the ascending ``owner`` (not empty)."""
    return np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))


def peaks_of(level: np.ndarray, ranges: Ranges) -> np.ndarray:
    """(k,): index of the highest ``level`` (n,) of each range; NaN counts as the lowest."""
    within = level[ranges.at]
    np.putmask(within, np.isnan(within), -np.inf)
    return ranges.first_where(within == ranges.highest(within)[ranges.owner])


def onsets_of(excess: np.ndarray, ranges: Ranges) -> np.ndarray:
    """(k,): index at which each event first reaches `ONSET_HEIGHT` of its height.

    ``excess`` (total,): height above the baseline, -inf where unknown. The height of an event is the largest level that
    two consecutive values reach, so that noise on top of a spike does not delay the onset; at least half of the
    maximum, so that a single high value is not timed by the values before it.
    """
    known = np.flatnonzero(excess > -np.inf)
    owner, values = ranges.owner[known], excess[known]
    pairs = lowest_of(values, 2)
    pairs[:-1][owner[1:] != owner[:-1]] = -np.inf
    begins = heads_of(owner)
    height = np.maximum(np.maximum.reduceat(pairs, begins), np.maximum.reduceat(values, begins) / 2)
    return ranges.first_where(excess >= (ONSET_HEIGHT * height)[ranges.owner])


def longest_of(score: np.ndarray, level: float, ranges: Ranges) -> np.ndarray:
    """(k,): length of the longest run of consecutive values of ``score`` (total,) at or above ``level``; at least 1."""
    longest = np.ones(len(ranges.first), dtype=np.int64)
    hits = np.flatnonzero(score >= level)
    if len(hits):
        first = np.union1d(heads(ranges.at[hits], 0), heads_of(ranges.owner[hits]))
        np.maximum.at(longest, ranges.owner[hits[first]], np.diff(np.append(first, len(hits))))
    return longest
