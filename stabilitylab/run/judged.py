"""The metric that a listed run is judged by, chosen without reading its curves."""

from __future__ import annotations

from stabilitylab.analysis.metrics import default_metric
from stabilitylab.store.listing import RunInfo


def judged_value(run: RunInfo) -> tuple[str, float | None]:
    """The metric that ``run`` is judged by and its last value; empty and None for a run without evaluations."""
    name = run.judged if run.judged in run.metrics else default_metric({n: m.goal for n, m in run.metrics.items()})
    return (name, run.metrics[name].last) if name is not None else ("", None)
