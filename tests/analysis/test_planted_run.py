"""A whole run with planted spikes, lag and dips: found where they were put."""

from __future__ import annotations

import json

import numpy as np

from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.results import LayerSeries, RunSeries
from stabilitylab.comparison.effects import compare_runs, summarize_run
from tests.synthetic import planted_run


def test_spikes_lag_and_dips_stand_where_they_were_planted() -> None:
    for seed in range(3):
        planted = planted_run(seed=seed, lag=20)
        found = analyze_run(planted.series)
        for name, onsets in planted.onsets.items():
            mine = [s.onset for s in found.spikes or () if s.layer == name]
            assert all(min(abs(onset - other) for other in mine) <= 2 for onset in onsets)
            assert len(mine) <= len(onsets) + 1
        lag = found.lag
        assert lag is not None
        assert lag.median_iterations == 20
        assert lag.ci95 is not None
        assert lag.ci95[0] <= 20 <= lag.ci95[1]
        assert (lag.verdict, lag.num_from) == ("first leads", len(planted.onsets["patch_embed"]))
        assert lag.p_value is not None
        assert lag.p_value < 0.05
        starts = [dip.start for dip in found.dips or ()]
        assert len(starts) == len(planted.dip_starts)
        assert all(min(abs(start - other) for other in starts) <= 10 for start in planted.dip_starts)
        assert all(dip.after_spike is not None for dip in found.dips or ())


def test_the_answer_is_json() -> None:
    answer = json.loads(json.dumps(analyze_run(planted_run().series).to_dict(), allow_nan=False))
    assert answer["schema"] == 1
    assert answer["lag"]["from"] == "patch_embed"
    assert set(answer["lag"]) == {
        "from", "to", "median_iterations", "ci95", "p_value", "num_matched", "num_from", "verdict", "reason",
        "cross", "agree", "resolution",
    }  # fmt: skip
    assert set(answer["spikes"][0]) == {"layer", "onset", "peak", "end", "ratio", "z", "kind", "lasted"}
    assert set(answer["dips"][0]["after_spike"]) == {"layer", "onset"}


def test_a_run_with_nothing_says_so() -> None:
    empty = np.array([])
    hollow = RunSeries("r", 0, (LayerSeries("a", 0, empty.astype(int), empty),))
    found = analyze_run(hollow)
    assert found.spikes == ()
    assert found.lag is not None
    assert found.lag.verdict == "inconclusive"
    assert any("no gradients recorded" in note for note in found.notes)
    assert any("dips are not judged" in note for note in found.notes)


def test_compare_pairs_by_seed() -> None:
    summaries = []
    for seed in range(3):
        for mitigation in ("none", "frozen-patch"):
            planted = planted_run(seed=seed, n=1500, count=4, dips=mitigation == "none")
            found = analyze_run(planted.series)
            summaries.append(summarize_run(planted.series, found, mitigation=mitigation, seed=seed, base_lr=0.1))
    comparison = compare_runs(summaries)
    effect = next(e for e in comparison.effects if e.metric == "dip_area")
    assert effect.num_seeds == 3
    assert effect.difference < 0
    assert "no p below 0.05 is possible" in effect.warning
