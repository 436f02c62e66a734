"""Episodes against a naive grouping and planted waves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stabilitylab.analysis.episodes import CHANCE_TO_JOIN, LONGEST_GAP, SHORTEST_GAP, find_episodes, join_gap
from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.results import Spike
from tests.synthetic import LAYERS, planted_run, spikes_at


def test_a_planted_wave_is_one_episode_with_its_leader_and_order() -> None:
    planted = planted_run(seed=4, lag=40)
    found = analyze_run(planted.series)
    waves = [episode for episode in found.episodes or () if len(episode.order) == len(LAYERS)]
    assert len(waves) == len(planted.onsets["patch_embed"])
    for wave, start in zip(waves, planted.onsets["patch_embed"], strict=True):
        assert wave.leader == "patch_embed"
        assert [layer for layer, _ in wave.order] == list(LAYERS)
        assert abs(wave.start - start) <= 2
        assert wave.reach == 1.0
        assert wave.end >= wave.order[-1][1]


def test_the_last_layer_may_lead() -> None:
    backwards = planted_run(seed=5, lag=-40)
    episodes = analyze_run(backwards.series).episodes or ()
    leaders = [episode.leader for episode in episodes if len(episode.order) == len(LAYERS)]
    assert leaders == ["predictor"] * len(backwards.onsets["predictor"])


@pytest.mark.parametrize("seed", range(5))
def test_episodes_are_the_connected_components(seed: int) -> None:
    """Two spikes are in one episode exactly if a chain of spikes, each within the gap of the next, joins them."""
    rng = np.random.default_rng(seed)
    onsets = rng.integers(0, 4000, 60)
    lengths = rng.integers(0, 40, 60)
    spikes = [
        Spike(f"l{rng.integers(6)}", int(o), int(o), int(o + k), 3.0, float(rng.uniform(5, 50)))
        for o, k in zip(onsets, lengths, strict=True)
    ]
    gap = 12
    label = list(range(60))
    for _ in range(60):  # naive: spread the smallest label until nothing changes
        for i, a in enumerate(spikes):
            for j, b in enumerate(spikes):
                if a.onset <= b.end + gap and b.onset <= a.end + gap:
                    label[i] = label[j] = min(label[i], label[j])
    groups = [[s for s, mine in zip(spikes, label, strict=True) if mine == name] for name in set(label)]
    expected = sorted((min(s.onset for s in g), max(s.end for s in g), max(s.z for s in g)) for g in groups)
    found = find_episodes(spikes, num_layers=6, gap=gap)
    assert [(e.start, e.end, e.z) for e in found] == expected
    for episode, members in zip(found, sorted(groups, key=lambda g: min(s.onset for s in g)), strict=True):
        first = {name: min(s.onset for s in members if s.layer == name) for name in {s.layer for s in members}}
        assert dict(episode.order) == first
        assert [onset for _, onset in episode.order] == sorted(first.values())
        assert episode.leader == episode.order[0][0]
        assert episode.reach == len(first) / 6


def test_layers_that_open_together_are_ordered_by_size_not_by_depth() -> None:
    spikes = [Spike("patch_embed", 10, 11, 12, 3.0, 8.0), Spike("predictor", 10, 11, 12, 9.0, 30.0)]
    for given in (spikes, spikes[::-1]):
        (episode,) = find_episodes(given, num_layers=2, gap=5)
        assert (episode.leader, episode.peak_layer, episode.ratio) == ("predictor", "predictor", 9.0)


def test_the_gap_keeps_unrelated_events_apart() -> None:
    """Of chance events at the rate asked for, at most a tenth fall into the gap after another."""
    assert join_gap(8, 1.0) == LONGEST_GAP
    assert join_gap(100_000, 1.0) == SHORTEST_GAP
    assert join_gap(8, 0.0) == LONGEST_GAP
    gap = join_gap(150, 1.0)
    rng = np.random.default_rng(0)
    onsets = np.sort(rng.integers(0, 1_000_000, 15_000))  # 150 layers, one event per 10,000 iterations each
    assert np.mean(np.diff(onsets) <= gap) == pytest.approx(CHANCE_TO_JOIN, abs=0.02)


def test_episodes_stand_in_the_json() -> None:
    answer = json.loads(json.dumps(analyze_run(planted_run().series).to_dict(), allow_nan=False))
    assert set(answer["episodes"][0]) == {
        "start", "end", "leader", "order", "reach", "peak_layer", "peak", "ratio", "z", "order_known",
    }  # fmt: skip
    assert answer["episodes"][0]["order"][0] == {
        "layer": answer["episodes"][0]["leader"],
        "onset": answer["episodes"][0]["start"],
    }


def test_no_spikes_no_episodes() -> None:
    assert find_episodes([], num_layers=3, gap=5) == ()
    assert len(find_episodes(spikes_at([10, 500]), num_layers=1, gap=50)) == 2
