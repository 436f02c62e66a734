"""The pooled lag through the doors that users have."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import stabilitylab
from stabilitylab.store.schema import LayerRow
from stabilitylab.store.writer import RunWriter
from tests.synthetic import planted_run


def write(root: Path, seed: int) -> None:
    planted = planted_run(seed=seed, n=900, count=2, lag=20)
    layers = planted.series.layers
    rows = [LayerRow(i, layer.name, layer.depth, 10) for i, layer in enumerate(layers)]
    config = {"train": {"seed": seed}}
    with RunWriter.create(root / f"run_{seed}", config=config, meta={}, layers=rows) as writer:
        for i, layer in enumerate(layers):
            ids = np.full(len(layer.iteration), i)
            writer.append("layer_stats", {"iteration": layer.iteration, "layer_id": ids, "grad_norm": layer.grad_norm})


def test_short_runs_have_a_lag_together(tmp_path: Path) -> None:
    for seed in range(4):
        write(tmp_path, seed)
    runs = [tmp_path / f"run_{seed}" for seed in range(4)]
    alone = stabilitylab.open_run(runs[0]).analyze().result.lag
    assert alone is not None
    assert alone.verdict == "inconclusive"
    lags = stabilitylab.compare(runs).lags
    last = lags[lags["target"] == "predictor"].iloc[0]
    assert last["verdict"] == "first leads"
    assert abs(last["median_iterations"] - 20) <= 1
