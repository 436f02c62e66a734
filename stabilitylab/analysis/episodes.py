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


def join_gap(num_layers: int, false_alarms_per_10k: float) -> int:
    """The widest gap that an unrelated chance event falls into with probability 0.1 at most."""
    per_iteration = num_layers * false_alarms_per_10k / 10_000
    if per_iteration <= 0:
        return LONGEST_GAP
    bridged = -math.log1p(-CHANCE_TO_JOIN) / per_iteration
    return int(min(max(bridged, SHORTEST_GAP), LONGEST_GAP))


def find_episodes(spikes: Sequence[Spike], *, num_layers: int, gap: int) -> tuple[Episode, ...]:
    """Episodes in order. Every spike is in exactly one. ``num_layers`` that are trained: what reach is a share of.

    Layers whose spikes open at the same iteration are ordered by how far they rise, never by depth: which of the
    ends leads is a finding, not an assumption.
    """
    episodes: list[Episode] = []
    together: list[Spike] = []
    last_end = -1
    for spike in sorted(spikes, key=lambda s: (s.onset, -s.z, s.layer)):
        if together and spike.onset > last_end + gap:
            episodes.append(_episode(together, num_layers))
            together = []
        last_end = max(last_end, spike.end) if together else spike.end
        together.append(spike)
    if together:
        episodes.append(_episode(together, num_layers))
    return tuple(episodes)


def _episode(spikes: Sequence[Spike], num_layers: int) -> Episode:
    onsets: dict[str, int] = {}
    for spike in spikes:
        onsets.setdefault(spike.layer, spike.onset)
    largest = max(spikes, key=lambda s: s.z)
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
    )
