"""The table of signals and layers: a planted lead is the best pair, chance is not named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.results import RunAnalysis
from stabilitylab.analysis.series import LayerSeries, RunSeries
from stabilitylab.analysis.warning_table import best_warning
from tests.synthetic import layer_series, noise, plant, spread_onsets

N = 6000
ONSETS = spread_onsets(np.random.default_rng(0), 20, N, apart=150)


class Planted:
    """update_ratio rises 4 iterations before l0's spikes; weight_norm and everything of l1 is noise."""

    names = ("update_ratio", "weight_norm")

    def load(self, signal: str, layers: Sequence[str]) -> list[LayerSeries]:
        found = []
        for depth, name in enumerate(layers):
            x = noise(N, seed=10 + depth + len(signal), sd=0.1)
            if signal == "update_ratio" and name == "l0":
                x = plant(x, (ONSETS[:15] - 4).tolist(), 1.0, width=3)
            found.append(layer_series(x, name, depth))
        return found


def analysed() -> RunAnalysis:
    layers = tuple(layer_series(plant(noise(N, seed=d, sd=0.1), ONSETS.tolist(), 2.0), f"l{d}", d) for d in range(2))
    return analyze_run(RunSeries("r", N, layers), signals=Planted())


def test_the_planted_pair_is_the_best() -> None:
    found = analysed()
    assert found.early_warnings is not None
    assert {(row.signal, row.layer) for row in found.early_warnings} == {
        (signal, layer) for signal in Planted.names for layer in ("l0", "l1")
    }
    best = best_warning(found.early_warnings)
    assert best is not None
    assert (best.signal, best.layer) == ("update_ratio", "l0")
    assert best.num_warned >= 14
    assert best.median_lead == pytest.approx(4, abs=1)
    assert best.p_holm is not None
    assert best.p_holm < 0.05
    others = [row for row in found.early_warnings if row is not best and row.p_holm is not None]
    assert all(row.p_holm is not None and row.p_holm > 0.05 for row in others)
    assert len(found.to_dict()["early_warnings"]) == 4


def test_a_record_too_sparse_for_a_lead_says_so() -> None:
    rows = np.arange(0, 20 * N, 20)
    x = plant(noise(N, seed=3, sd=0.1), ONSETS.tolist(), 2.0)
    sparse = LayerSeries("l0", 0, rows, np.exp(x))
    found = analyze_run(RunSeries("r", 20 * N, (sparse,)), signals=Planted())
    assert found.early_warnings is not None
    assert all(row.reason.startswith("not resolvable: rows are 20 iterations apart") for row in found.early_warnings)
