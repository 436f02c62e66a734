"""Load the input of the analysis from a run in the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from stabilitylab.analysis.series import EvalCurve, LayerSeries, RunSeries
from stabilitylab.layernames import is_probe
from stabilitylab.metrics import GOALS, SCALES
from stabilitylab.signals import BUILT_IN, SIGNALS
from stabilitylab.store.reader import RunReader
from stabilitylab.store.series import split_by_layer


def load_series(reader: RunReader) -> RunSeries:
    """Load everything that the analysis needs from a run."""
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
        consumed=_consumed(reader),
    )


def _last_event(reader: RunReader, kind: str) -> str | None:
    return next((event.detail for event in reversed(reader.events()) if event.kind == kind), None)


def _off_path(reader: RunReader) -> tuple[str, ...]:
    """Layers whose gradients do not come from the main loss: as recorded, or judged by name for imported runs."""
    if "device" in reader.meta:
        return tuple(dict.fromkeys(event.detail for event in reader.events() if event.kind == "off-path"))
    return tuple(row.name for row in reader.layers() if is_probe(row.name))


METRIC_EVENT = "metric"
"""The kind of event by which a run declares a metric's goal and scale: ``{"name": ..., "goal": ..., "scale": ...}``."""


def _declared(reader: RunReader) -> dict[str, tuple[str | None, str | None]]:
    """(goal, scale) of each metric declared in an event; the last declaration counts."""
    declared: dict[str, tuple[str | None, str | None]] = {}
    for event in reader.events():
        if event.kind != METRIC_EVENT:
            continue
        try:
            fields = json.loads(event.detail)
            declared[fields["name"]] = (
                fields.get("goal") if fields.get("goal") in GOALS else None,
                fields.get("scale") if fields.get("scale") in SCALES else None,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # an event of this kind that the user recorded
    return declared


def _training_loss(reader: RunReader) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rows = reader.table("iterations")
    loss = np.asarray(rows["loss"], dtype=np.float64)
    if not np.isfinite(loss).any():
        return {}
    order = np.argsort(rows["iteration"], kind="stable")
    return {"loss": (rows["iteration"][order], loss[order])}


FEATURES = ("feature_spread", "feature_rank", "feature_dim")
"""The scalars from which collapse is judged."""


def _features(reader: RunReader) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    listed = ", ".join(f"'{name}'" for name in FEATURES)
    rows = reader.query(
        f"SELECT name, iteration, value::DOUBLE AS value FROM scalars WHERE name IN ({listed}) AND value IS NOT NULL "
        "ORDER BY iteration"
    ).fetchnumpy()
    features = {}
    for name in FEATURES:
        own = rows["name"] == name
        if own.any():
            features[name] = (np.asarray(rows["iteration"][own]), np.asarray(rows["value"][own]))
    return features


_COUNTS = {
    "tokens": ("tokens", "tokens_seen", "num_tokens", "consumed_tokens", "num_input_tokens_seen", "total_tokens"),
    "images": ("images", "images_seen", "samples", "samples_seen", "num_samples", "consumed_samples", "examples_seen"),
}
"""Names of the scalars that count what a run has consumed."""


def _consumed(reader: RunReader) -> tuple[str, np.ndarray, np.ndarray] | None:
    """Tokens or images consumed so far; None if nothing counts them, or the count does not rise."""
    for what, names in _COUNTS.items():
        listed = ", ".join(f"'{name}'" for name in names)
        rows = reader.query(
            f"SELECT iteration, max(value)::DOUBLE AS value FROM scalars WHERE lower(name) IN ({listed}) "
            "GROUP BY iteration ORDER BY iteration"
        ).fetchnumpy()
        iteration, count = np.asarray(rows["iteration"]), np.ma.filled(rows["value"], np.nan)
        if what == "images" and not len(count):
            columns = reader.table("iterations")
            order = np.argsort(columns["iteration"], kind="stable")
            iteration, count = columns["iteration"][order], np.asarray(columns["images"], dtype=np.float64)[order]
        known = np.isfinite(count)
        iteration, count = iteration[known], count[known]
        if len(count) > 1 and (np.diff(count) >= 0).all() and count[-1] > count[0] >= 0:
            return what, iteration, count
    return None


def _facts(config: dict[str, Any]) -> dict[str, str | float]:
    """The settings that determine the loss at chance; empty for a run without them."""
    facts: dict[str, str | float] = {}
    for fact, section, key in (
        ("method", "method", "name"),
        ("temperature", "method", "temperature"),
        ("batch_size", "train", "batch_size"),
    ):
        inner = config.get(section)
        value = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            facts[fact] = value
    return facts


class StoredSignals:
    """The signals that a run recorded in addition to its gradient norms, loaded on demand."""

    def __init__(self, reader: RunReader, series: RunSeries) -> None:
        self._reader = reader
        self._layers = {layer.name: layer for layer in series.layers}
        self._ids = {row.name: row.layer_id for row in reader.layers()}
        columns = reader.query("SELECT * FROM layer_stats LIMIT 0").fetchnumpy()  # an older run has fewer
        others = [name for name in BUILT_IN if name in columns and name not in ("grad_norm", "grad_max", "nonfinite")]
        counts = ", ".join(f"count({name}) AS {name}" for name in others)
        counted = reader.query(f"SELECT {counts} FROM layer_stats").fetchnumpy()
        self.names = tuple(name for name in others if int(counted[name][0]) > 0)

    def load(self, signal: str, layers: Sequence[str]) -> list[LayerSeries]:
        """The series of a signal for ``layers``. The exponential of a signed signal is returned, because the analysis
        takes logarithms."""
        ids = {self._ids[name]: name for name in layers if name in self._ids}
        listed = ", ".join(str(layer_id) for layer_id in ids)
        if not listed:
            return []
        rows = self._reader.query(
            f"SELECT layer_id, iteration::BIGINT AS iteration, {signal}::DOUBLE AS value FROM layer_stats "
            f"WHERE {signal} IS NOT NULL AND layer_id IN ({listed})"
        ).fetchnumpy()
        by_layer = split_by_layer(rows["layer_id"], rows["iteration"], rows["value"])
        signed = SIGNALS[signal].signed
        return [
            LayerSeries(
                name, self._layers[name].depth, by_layer[i][0], np.exp(by_layer[i][1]) if signed else by_layer[i][1]
            )
            for i, name in ids.items()
            if i in by_layer
        ]
