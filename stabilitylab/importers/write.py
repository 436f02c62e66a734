"""Writes named series as a run; every importer uses this."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.choose import Chosen, choose
from stabilitylab.importers.options import Options
from stabilitylab.importers.restarts import drop_superseded
from stabilitylab.importers.series import Log, Note, Series
from stabilitylab.importers.trust import examine
from stabilitylab.store.schema import LayerRow
from stabilitylab.store.whole import WholeRun, write_runs_whole
from stabilitylab.store.writer import RunWriter

MAX_LAYERS = 2**15 - 1  # the store's SMALLINT
ROWS_AT_A_TIME = 500_000


@dataclass(frozen=True)
class Imported:
    """An imported run: its folder, the roles of its series, and notes."""

    path: Path
    format: str
    run: str
    layers: tuple[str, ...]
    rows: int
    iterations: int
    loss: str
    metrics: tuple[str, ...]
    scalars: int
    notes: tuple[Note, ...]


def write_logs(root: Path, logs: Sequence[Log], options: Options, name: str | None = None) -> list[Imported]:
    """Write each log as a finished run below ``root``; none is written if one fails.

    ``name``: name of a single run; several runs are called ``name-RUN``.

    Raises:
        LogFormatError: a log cannot be written as a run.
    """
    prepared = [(log, _prepare(log, options)) for log in logs]
    runs = [_whole(log, chosen, _name_of(name, log, place, len(logs))) for place, (log, chosen) in enumerate(prepared)]
    paths = write_runs_whole(root, runs)
    return [
        Imported(
            path=path,
            format=log.format,
            run=log.run,
            layers=tuple(layer.name for layer in chosen.layers),
            rows=sum(len(layer.norm) for layer in chosen.layers),
            iterations=_iterations(chosen),
            loss="" if chosen.loss is None else chosen.loss.name,
            metrics=tuple(series.name for series, _ in chosen.metrics),
            scalars=len(chosen.scalars),
            notes=tuple(log.notes),
        )
        for path, (log, chosen) in zip(paths, prepared, strict=True)
    ]


def _prepare(log: Log, options: Options) -> Chosen:
    drop_superseded(log)
    chosen = choose(log, options)
    if not chosen.layers and not chosen.metrics and chosen.loss is None and not chosen.scalars:
        raise LogFormatError(f"{log.path} contains no numbers with steps; nothing was imported")
    if len(chosen.layers) > MAX_LAYERS:
        raise LogFormatError(f"{len(chosen.layers):,} layers; a run can have up to {MAX_LAYERS:,}: choose fewer layers")
    if not chosen.layers:
        log.note("no_gradients", "no series is a gradient norm: spikes and lags are not judged; set them with --grads")
    _count_from_zero(log, chosen)
    examine(log, chosen)
    return chosen


def _count_from_zero(log: Log, chosen: Chosen) -> None:
    """If every update is logged and the first is step 1, shift it to iteration 0. The step of an evaluation is the
    number of updates before it, so it is not shifted."""
    norms = [layer.norm for layer in chosen.layers]
    if not log.counts_from or not norms:
        return
    steps = max((series.step for series in norms), key=len)
    if len(steps) < 2 or steps[0] < log.counts_from or np.median(np.diff(steps)) > 1:
        return
    training = [chosen.total, chosen.loss, chosen.lr, chosen.epoch, *norms, *chosen.scalars]
    training += [layer.largest for layer in chosen.layers]
    for series in {id(series): series for series in training if series is not None}.values():
        series.step = np.maximum(series.step - log.counts_from, 0)
    log.note(
        "counts_from", f"the first update of the log is step {log.counts_from}, so iteration = step - {log.counts_from}"
    )


def _name_of(name: str | None, log: Log, place: int, count: int) -> str | None:
    if name is None or count == 1:
        return name
    tail = "".join(c if c.isalnum() or c in "._-" else "-" for c in log.run).strip("-") or str(place + 1)
    return f"{name}-{tail}"


def _whole(log: Log, chosen: Chosen, name: str | None) -> WholeRun:
    depths = [log.depths.get(layer.name, depth) for depth, layer in enumerate(chosen.layers)]
    rows = [LayerRow(i, layer.name, depths[i], 0, True) for i, layer in enumerate(chosen.layers)]

    def fill(writer: RunWriter) -> None:
        for place, layer in enumerate(chosen.layers):
            _append(writer, "layer_stats", _layer_columns(place, layer.norm, layer.largest))
        _append(writer, "iterations", _iteration_columns(chosen))
        for metric, declared in chosen.metrics:
            _append(writer, "evals", _metric_columns(metric, declared.name))
        for scalar in chosen.scalars:
            _append(writer, "scalars", {"iteration": scalar.step, "name": scalar.name, "value": scalar.value})
        for note in log.notes:
            writer.event(note.iteration, note.kind, note.text)
        for _, declared in chosen.metrics:
            if declared.goal is not None or declared.percent is not None:
                scale = "percent" if declared.percent else None
                writer.event(0, "metric", json.dumps({"name": declared.name, "goal": declared.goal, "scale": scale}))

    meta = {"source": log.format} | ({"rows": log.rows} if log.rows else {})
    return WholeRun(name, fill, {"source": log.format, "file": log.path.name, "run": log.run}, meta, rows)


def _iterations(chosen: Chosen) -> int:
    ends = [series.step[-1] for series, iterates in _all_series(chosen) if iterates and len(series)]
    return int(max(ends, default=-1)) + 1


def _all_series(chosen: Chosen) -> Iterator[tuple[Series, bool]]:
    """(series, whether its steps are iterations of the run) of every series."""
    for layer in chosen.layers:
        yield layer.norm, True
    for series in (chosen.total, chosen.loss, chosen.lr, chosen.epoch):
        if series is not None:
            yield series, True
    for series in (*(metric for metric, _ in chosen.metrics), *chosen.scalars):
        yield series, False


def _layer_columns(place: int, norm: Series, largest: Series | None) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "iteration": norm.step.astype(np.int32),
        "layer_id": np.full(len(norm), place, np.int16),
        "grad_norm": norm.value,
    }
    if largest is not None and len(largest):
        columns["grad_max"] = _at(norm.step, largest)
    return columns


def _iteration_columns(chosen: Chosen) -> dict[str, Any]:
    named = {"epoch": chosen.epoch, "loss": chosen.loss, "lr": chosen.lr, "grad_norm": chosen.total}
    there = {column: series for column, series in named.items() if series is not None and len(series)}
    if not there:
        return {}
    steps = np.unique(np.concatenate([series.step for series in there.values()]))
    return {"iteration": steps.astype(np.int32), **{column: _at(steps, series) for column, series in there.items()}}


def _metric_columns(metric: Series, name: str) -> dict[str, Any]:
    columns: dict[str, Any] = {"iteration": metric.step, "metric": name, "value": metric.value}
    if metric.num_samples is not None:
        unknown = metric.num_samples < 0
        columns["num_samples"] = np.ma.masked_array(np.where(unknown, 0, metric.num_samples), unknown)
    return columns


def _at(steps: np.ndarray, series: Series) -> np.ma.MaskedArray[Any, Any]:
    """The values of a series at the sorted ``steps``, masked where it has none."""
    place = np.searchsorted(series.step, steps)
    inside = place < len(series)
    there = np.zeros(len(steps), dtype=bool)
    there[inside] = series.step[place[inside]] == steps[inside]
    values = np.zeros(len(steps))
    values[there] = series.value[place[there]]
    return np.ma.masked_array(values, ~there)


def _append(writer: RunWriter, table: str, columns: dict[str, Any]) -> None:
    """Append rows in parts, so that they are not in memory twice."""
    count = len(columns["iteration"]) if columns else 0
    for start in range(0, count, ROWS_AT_A_TIME):
        part = slice(start, start + ROWS_AT_A_TIME)
        writer.append(table, {k: v if isinstance(v, str) else v[part] for k, v in columns.items()})
        if count > ROWS_AT_A_TIME:
            writer.publish(wait=True)
