"""Spikes of several layers that belong together: one episode, with the layer that leads and those that follow.

Spikes are taken in order of onset; one that begins within ``gap`` iterations after the last end so far joins the
episode. The gap is as wide as chance allows: with many layers, unrelated events lie close.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stabilitylab.analysis.results import Episode, Spike

LONGEST_GAP = 50
"""A wave through few layers pauses for tens of iterations between two of them (the paper's Figure 4)."""
SHORTEST_GAP = 3
CHANCE_TO_JOIN = 0.1


def join_gap(num_layers: int, false_alarms_per_10k: float, step: int = 1) -> int:
    """The widest gap, in iterations, that an unrelated chance event falls into with probability 0.1 at most. ``step``
    is the recording step; the rate is one of recorded values."""
    per_value = num_layers * false_alarms_per_10k / 10_000
    longest = max(LONGEST_GAP, step)
    if per_value <= 0:
        return longest
    bridged = -math.log1p(-CHANCE_TO_JOIN) / per_value * step
    return int(min(max(bridged, SHORTEST_GAP), longest))


def find_episodes(spikes: Sequence[Spike], *, num_layers: int, gap: int, step: int = 1) -> tuple[Episode, ...]:
    """Episodes in order. Every spike is in exactly one. ``num_layers`` that are trained: what reach is a share of.
    ``step`` is the recording step: which of two layers that open within it was first is not known.

    Layers whose spikes open at the same iteration are ordered by how far they rise, never by depth: which of the
    ends leads is a finding, not an assumption.
    """
    episodes: list[Episode] = []
    together: list[Spike] = []
    last_end = -1
    for spike in sorted(spikes, key=lambda s: (s.onset, -s.z, s.layer)):
        if together and spike.onset > last_end + gap:
            episodes.append(_episode(together, num_layers, step))
            together = []
        last_end = max(last_end, spike.end) if together else spike.end
        together.append(spike)
    if together:
        episodes.append(_episode(together, num_layers, step))
    return tuple(episodes)


def _episode(spikes: Sequence[Spike], num_layers: int, step: int) -> Episode:
    onsets: dict[str, int] = {}
    for spike in spikes:
        onsets.setdefault(spike.layer, spike.onset)
    largest = max(spikes, key=lambda s: s.z)
    opened = list(onsets.values())
    return Episode(
        start=spikes[0].onset,
        end=max(spike.end for spike in spikes),
        leader=spikes[0].layer,
        order=tuple(onsets.items()),
        reach=len(onsets) / num_layers,
        peak_layer=largest.layer,
        peak=largest.peak,
        ratio=largest.ratio,
        z=largest.z,
        order_known=len(opened) < 2 or opened[1] - opened[0] > (step if step > 1 else 0),
    )
