"""From a run in the store to what analysis reads."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from stabilitylab.analysis.series import EvalCurve, LayerSeries, RunSeries
from stabilitylab.layernames import is_probe
from stabilitylab.metrics import GOALS, SCALES
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
    declared = _declared(reader)
    evals = {
        metric: EvalCurve(
            columns["iteration"], columns["value"], columns["num_samples"], *declared.get(metric, (None, None))
        )
        for metric, columns in reader.evals().items()
    }
    choice = reader.config.get("analysis")
    choice = choice if isinstance(choice, dict) else {}
    return RunSeries(
        reader.name,
        reader.num_iterations,
        tuple(layers),
        evals,
        rows=reader.meta.get("rows", ""),
        scalars=_training_loss(reader) | _features(reader),
        facts=_facts(reader.config),
        metric=choice.get("metric"),
        goal=choice.get("goal"),
        first=_last_event(reader, "first-layer"),
        last=_last_event(reader, "last-layer"),
        off_path=_off_path(reader),
    )


def _last_event(reader: RunReader, kind: str) -> str | None:
    return next((event.detail for event in reversed(reader.events()) if event.kind == kind), None)


def _off_path(reader: RunReader) -> tuple[str, ...]:
    """Layers whose gradients do not come from the main loss. The recorder says so; where there was none, names tell."""
    if "device" in reader.meta:
        return tuple(dict.fromkeys(event.detail for event in reader.events() if event.kind == "off-path"))
    return tuple(row.name for row in reader.layers() if is_probe(row.name))


METRIC_EVENT = "metric"
"""The kind of event by which a run declares a metric's goal and scale: ``{"name": ..., "goal": ..., "scale": ...}``."""


def _declared(reader: RunReader) -> dict[str, tuple[str | None, str | None]]:
    """Goal and scale of the metrics that were declared with them; the last declaration counts."""
    found: dict[str, tuple[str | None, str | None]] = {}
    for event in reader.events():
        if event.kind != METRIC_EVENT:
            continue
        try:
            told = json.loads(event.detail)
            found[told["name"]] = (
                told.get("goal") if told.get("goal") in GOALS else None,
                told.get("scale") if told.get("scale") in SCALES else None,
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # somebody else's event of that kind
    return found


def _training_loss(reader: RunReader) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rows = reader.table("iterations")
    loss = np.asarray(rows["loss"], dtype=np.float64)
    if not np.isfinite(loss).any():
        return {}
    order = np.argsort(rows["iteration"], kind="stable")
    return {"loss": (rows["iteration"][order], loss[order])}


FEATURES = ("feature_spread", "feature_rank", "feature_dim")
"""The scalars that collapse is judged by."""


def _features(reader: RunReader) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    listed = ", ".join(f"'{name}'" for name in FEATURES)
    rows = reader.query(
        f"SELECT name, iteration, value::DOUBLE AS value FROM scalars WHERE name IN ({listed}) AND value IS NOT NULL "
        "ORDER BY iteration"
    ).fetchnumpy()
    found = {}
    for name in FEATURES:
        own = rows["name"] == name
        if own.any():
            found[name] = (np.asarray(rows["iteration"][own]), np.asarray(rows["value"][own]))
    return found


def _facts(config: dict[str, Any]) -> dict[str, str | float]:
    """What the loss at chance follows from, where the run was trained here."""
    found: dict[str, str | float] = {}
    for fact, section, key in (
        ("method", "method", "name"),
        ("temperature", "method", "temperature"),
        ("batch_size", "train", "batch_size"),
    ):
        inner = config.get(section)
        value = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            found[fact] = value
    return found
