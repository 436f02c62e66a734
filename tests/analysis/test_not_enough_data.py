"""Series that cannot be judged: each is listed with the reason, and no number is invented."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.results import EvalCurve, LayerSeries, RunAnalysis, RunSeries
from stabilitylab.comparison.arms import Arm
from stabilitylab.report.html.verdict import answers, headline
from stabilitylab.report.html.wording import summary
from stabilitylab.run.view import Analysis
from tests.synthetic import LAYERS, layer_series, noise, planted_run

N = 1200
GOOD = layer_series(noise(N, seed=0, sd=0.1), "good", 0)


def with_layer(norm: np.ndarray, iteration: np.ndarray | None = None) -> RunAnalysis:
    """The analysis of a run with a good layer and the one in question, which must be JSON whatever is in it."""
    odd = LayerSeries("odd", 1, np.arange(len(norm)) if iteration is None else iteration, norm)
    found = analyze_run(RunSeries("r", N, (GOOD, odd)))
    json.dumps(found.to_dict(), allow_nan=False)
    return found


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (np.ones(0), "odd: no gradients recorded"),
        (np.exp(noise(40, seed=1)), "odd: not enough data: 40 usable values; more than 50 are needed"),
        (np.full(N, 0.3), "odd: not enough data: the gradient norm is constant"),
        (np.zeros(N), "odd: not enough data: 0 usable values"),
        (np.full(N, np.nan), "odd: not enough data for spikes: every gradient is NaN or infinite"),
        (np.full(N, np.inf), "odd: not enough data for spikes: every gradient is NaN or infinite"),
    ],
)
def test_a_layer_that_cannot_be_judged_is_named(norm: np.ndarray, reason: str) -> None:
    found = with_layer(norm)
    assert any(note.startswith(reason) for note in found.notes), found.notes
    assert [s for s in found.spikes or () if s.layer == "odd" and s.kind == "spike"] == []
    assert found.lag is not None
    assert (found.lag.verdict, found.lag.median_iterations, found.lag.p_value) == ("inconclusive", None, None)
    assert found.lag.reason


def test_an_all_nan_layer_is_one_event() -> None:
    found = with_layer(np.full(N, np.nan))
    assert [(s.onset, s.end) for s in found.spikes or () if s.layer == "odd"] == [(0, N - 1)]


def test_gaps_are_said_and_duplicates_count_once() -> None:
    planted = planted_run(seed=3)
    whole = analyze_run(planted.series)
    twice, gapped = [], []
    for layer in planted.series.layers:
        order = np.concatenate([np.arange(1000), np.arange(900, 3000)])  # a resumed run: 900 to 999 come again
        norm = layer.grad_norm[order]
        norm[900:1000] = 1e9  # what was before the crash does not count
        twice.append(LayerSeries(layer.name, layer.depth, layer.iteration[order], norm))
        keep = (layer.iteration < 500) | (layer.iteration >= 560)
        gapped.append(LayerSeries(layer.name, layer.depth, layer.iteration[keep], layer.grad_norm[keep]))
    again = analyze_run(RunSeries("planted", 3000, tuple(twice), planted.series.evals))
    assert again.spikes == whole.spikes
    assert again.lag == whole.lag
    assert not any("missing" in note for note in again.notes)
    found = analyze_run(RunSeries("planted", 3000, tuple(gapped), planted.series.evals))
    assert any("iterations are missing from the record" in note for note in found.notes)
    assert found.lag is not None
    assert found.lag.median_iterations == pytest.approx(20, abs=1)


def test_one_layer_has_no_lag() -> None:
    found = analyze_run(RunSeries("r", N, (GOOD,)))
    assert "not enough data for a lag: only one layer has a gradient (good)" in found.notes
    assert found.lag is not None
    assert (found.lag.verdict, found.lag.cross) == ("inconclusive", None)
    assert found.propagation == ()


def test_a_frozen_model_has_neither() -> None:
    frozen = LayerSeries("f", 0, np.array([], dtype=int), np.array([]), trainable=False)
    found = analyze_run(RunSeries("r", N, (frozen,)))
    assert "not enough data for a lag: no layer has a gradient" in found.notes
    assert (found.spikes, found.episodes, found.lag) == ((), (), None)


@pytest.mark.parametrize("values", [None, [], [0.5], [0.5, np.nan, np.nan, 0.4]])
def test_no_knn_no_dips(values: list[float] | None) -> None:
    evals = {}
    if values is not None:
        evals["knn_top1"] = EvalCurve(np.arange(len(values)), np.array(values), np.full(len(values), 100))
    found = analyze_run(RunSeries("r", N, (GOOD,), evals))
    have = "none" if values is None else f"knn_top1 ({int(np.isfinite(values).sum())})"
    expected = f"dips are not judged: no metric has the required 3 evaluations; recorded: {have}"
    assert expected in found.notes
    assert (found.dips, found.dip_link) == (None, None)


def test_a_run_recorded_every_fifth_iteration_keeps_its_lag() -> None:
    planted = planted_run(seed=8, lag=40)
    layers = [LayerSeries(x.name, x.depth, x.iteration[::5], x.grad_norm[::5]) for x in planted.series.layers]
    found = analyze_run(RunSeries("sparse", 3000, tuple(layers)))
    assert found.lag is not None
    assert found.lag.median_iterations == pytest.approx(40, abs=5)
    assert found.lag.cross is not None
    assert found.lag.cross.lag == pytest.approx(40, abs=5)
    assert len(found.propagation or ()) == len(LAYERS)


def test_a_run_too_short_for_spikes_says_so_everywhere() -> None:
    layers = [layer_series(noise(40, seed=i, sd=0.1), f"blocks.{i}", i) for i in range(3)]
    series = RunSeries("short", 40, tuple(layers))
    found = analyze_run(series)
    assert (found.spikes, found.spikes_unjudged) == ((), True)
    assert found.spikes_reason == "40 usable values; more than 50 are needed to detect spikes"
    assert found.lag is not None
    assert found.lag.reason.startswith("spikes are not judged: 40 usable values")
    view = Analysis(found, "finished")
    for table in (view.spikes, view.episodes, view.drifts):
        assert table.attrs["judged"] is False
    rows = dict(view._rows())
    assert [rows[name] for name in ("spikes", "episodes", "drifts")] == ["not judged"] * 3
    assert headline([(series, found)], None).startswith("Gradient spikes not judged: 40 usable values")
    assert "not judged" in summary(series, found, "finished")
    said = dict(answers([(series, found)], ["none"], [Arm("none", 0, (0,))], None))
    assert said["Was it unstable?"][0].startswith("Unknown: spikes not judged (40 usable values")
    assert said["Where did it start?"][0].startswith("Not judged")
    longer = analyze_run(RunSeries("longer", N, (GOOD, layers[1])))
    assert (longer.spikes_reason, longer.spikes_unjudged) == ("", False)
