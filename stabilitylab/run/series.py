"""From a run in the store to what analysis reads."""

from __future__ import annotations

from stabilitylab.analysis.series import EvalCurve, LayerSeries, RunSeries
from stabilitylab.store.reader import RunReader


def load_series(reader: RunReader) -> RunSeries:
    """Everything of a run that analysis reads."""
    recorded = reader.layer_series("grad_norm")
    empty = next(iter(recorded.values()), None)
    layers = []
    for row in sorted(reader.layers(), key=lambda row: row.depth):
        series = recorded.get(row.layer_id)
        if series is None and empty is not None:
            series = (empty[0][:0], empty[1][:0])
        if series is not None:
            layers.append(LayerSeries(row.name, row.depth, series[0], series[1], row.trainable))
    evals = {
        metric: EvalCurve(columns["iteration"], columns["value"], columns["num_samples"])
        for metric, columns in reader.evals().items()
    }
    return RunSeries(
        reader.meta["run_id"], reader.num_iterations, tuple(layers), evals, rows=reader.meta.get("rows", "")
    )
