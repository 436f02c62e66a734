"""The size of a real run: 150 layers, 10,000 iterations."""

import resource
from pathlib import Path

import numpy as np
import pytest

from stabilitylab.store.reader import open_run
from stabilitylab.store.schema import LayerRow
from stabilitylab.store.writer import RunWriter


@pytest.mark.slow
def test_a_million_and_a_half_rows(run_dir: Path) -> None:
    num_layers, num_iterations, flush = 150, 10_000, 200
    layers = [LayerRow(i, f"blocks.{i}", i, 10) for i in range(num_layers)]
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=(num_iterations, num_layers)).astype(np.float32)
    values[5000, 7] = np.nan
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with RunWriter.create(run_dir, config={}, meta={}, layers=layers) as writer:
        for begin in range(0, num_iterations, flush):
            columns = {
                "iteration": np.repeat(np.arange(begin, begin + flush), num_layers),
                "layer_id": np.tile(np.arange(num_layers), flush),
            }
            part = values[begin : begin + flush].ravel()
            writer.append("layer_stats", columns | dict.fromkeys(("grad_norm", "grad_max"), part))
            writer.publish()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # KiB
    assert (run_dir / "run.duckdb").stat().st_size < 25 * num_layers * num_iterations
    with open_run(run_dir) as run:
        series = run.layer_series()
        assert run.verify() == []
        order = run.query("SELECT layer_id, iteration FROM layer_stats").fetchnumpy()
    assert len(series) == num_layers
    for layer_id, (iteration, value) in series.items():
        np.testing.assert_array_equal(iteration, np.arange(num_iterations))
        np.testing.assert_array_equal(value, values[:, layer_id].astype(np.float64))
    # Ordered on disk by layer, then iteration.
    place = order["layer_id"].astype(np.int64) * num_iterations + order["iteration"]
    np.testing.assert_array_equal(place, np.arange(num_layers * num_iterations))
