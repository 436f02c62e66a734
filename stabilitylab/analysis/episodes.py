"""Episodes: groups of spikes of several layers that are close in time, with a leading layer and those that follow.

Spikes are processed in order of onset. A spike joins the current episode if it begins at most ``gap`` iterations after
the end of the episode so far. With many layers, unrelated events are closer together, so the gap is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stabilitylab.analysis.results import Episode, Spike

LONGEST_GAP = 50
"""In iterations. In the paper's Figure 4, a spike takes tens of iterations from one layer to the next."""
SHORTEST_GAP = 3
CHANCE_TO_JOIN = 0.1


def join_gap(num_layers: int, false_alarms_per_10k: float, step: int = 1) -> int:
    """The widest gap, in iterations, into which a false alarm falls with probability at most 0.1.

    ``false_alarms_per_10k``: false alarms per 10,000 recorded values and layer. ``step``: the recording step.
    """
    per_value = num_layers * false_alarms_per_10k / 10_000
    longest = max(LONGEST_GAP, step)
    if per_value <= 0:
        return longest
    bridged = -math.log1p(-CHANCE_TO_JOIN) / per_value * step
    return int(min(max(bridged, SHORTEST_GAP), longest))


def find_episodes(spikes: Sequence[Spike], *, num_layers: int, gap: int, step: int = 1) -> tuple[Episode, ...]:
    """Episodes in order of time. Every spike belongs to exactly one.

    ``num_layers``: number of trained layers, the denominator of ``reach``. ``gap``: see `join_gap`. ``step``: the
    recording step; the order of two spikes that open within one step is unknown.

    Spikes that open at the same iteration are ordered by height, never by depth, so that the result does not assume
    which end of the network leads.
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
