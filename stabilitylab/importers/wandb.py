"""Weights & Biases: CSV from the web page, history as CSV or JSON lines, offline runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from stabilitylab.errors import LogFormatError
from stabilitylab.importers import jsonlines
from stabilitylab.importers.formats import Format, Sample
from stabilitylab.importers.long_tables import wide_logs
from stabilitylab.importers.options import Options
from stabilitylab.importers.records import STEPS, log_of_records
from stabilitylab.importers.series import MAX_ITERATION, Log, Series
from stabilitylab.importers.tables import Table, open_table
from stabilitylab.importers.wandb_offline import offline_files, read_offline

_TIME = re.compile(r"relative time.*|wall time|_runtime|_timestamp|time", re.IGNORECASE)


def recognises(sample: Sample) -> bool:
    if sample.is_folder:
        return next(offline_files(sample.path), None) is not None
    if sample.path.suffix == ".wandb" or sample.raw[:4] == b":W&B":
        return True
    if sample.records:
        return any("_step" in record or "_runtime" in record for record in sample.records[:20])
    return "_step" in sample.columns or _is_page(sample.columns)


def read(path: Path, options: Options) -> list[Log]:
    """One log, or one per run in a CSV from the page, or one per offline run in a folder."""
    if path.is_dir():
        return [read_offline(file, options) for file in sorted(offline_files(path))]
    if path.suffix == ".wandb":
        return [read_offline(path, options)]
    sample = Sample(path)
    if sample.head.lstrip().startswith("{"):
        return jsonlines.read(path, options, "wandb")
    table = open_table(path, options, "wandb")
    if _is_page(table.columns):
        return _page(path, table, options)
    return [_history(path, table, options)]


def _is_page(columns: list[str]) -> bool:
    return any(" - " in column for column in columns[1:])


def _history(path: Path, table: Table, options: Options) -> Log:
    """Read a data frame of ``run.history()`` that was saved as CSV."""
    histograms = [name for name in table.columns if table.looks_like_text(name)]
    if histograms or options.step is None:
        text = {name: table.texts(name) for name in histograms}
        step = options.step or next((name for name in STEPS if name in table.columns), None)
        if step is None:
            raise LogFormatError(
                f"{path} has no step column (one of {', '.join(STEPS)}); it has {', '.join(table.columns[:8])}; "
                "choose one with --step"
            )
        if any("histogram" in cell for cells in text.values() for cell in cells[:50]):
            return log_of_records(table.records(), path, options, format="wandb", refused=table.refused)
    return wide_logs(table, options)[0]


def _page(path: Path, table: Table, options: Options) -> list[Log]:
    """Read the CSV export of a chart: first the axis, then ``RUN - SERIES`` with its minimum and maximum."""
    axis = table.columns[0]
    runs: dict[str, dict[str, str]] = {}
    for column in table.columns[1:]:
        run, dash, name = column.rpartition(" - ")
        if dash:
            runs.setdefault(run, {})[name] = column
    logs = []
    for run, columns in runs.items():
        own = columns.pop("_step", None)
        step_column, steps, known = _axis(path, table, axis, own, options)
        if step_column != axis:
            columns.pop(step_column.rpartition(" - ")[2], None)
        log = Log("wandb", path, run=run)
        rows = np.arange(len(steps))
        for name, column in columns.items():
            if name.endswith(("__MIN", "__MAX")) and name[:-5] in columns:
                continue
            value, state = table.numbers(column)
            there = (state == 1) & known
            table.refuse_text(column, state)
            low, high = (_bound(table, columns.get(f"{name}__{end}"), there, value) for end in ("MIN", "MAX"))
            bucketed = low is not None and high is not None and bool((low < high).any())
            if there.any():
                log.series[name] = Series(
                    name, steps[there], value[there], rows[there],
                    low=low if bucketed else None, high=high if bucketed else None,
                )  # fmt: skip
        table.refused.add_note(log)
        if not log.series:
            raise LogFormatError(f"{path} contains no numbers of {run}; export the chart with its step")
        logs.append(log)
    if not logs:
        raise LogFormatError(f"{path} contains no column of a run; export the chart with its step")
    return logs


def _axis(path: Path, table: Table, axis: str, own: str | None, options: Options) -> tuple[str, np.ndarray, np.ndarray]:
    """The column of the steps, the steps (n,) int64, and a mask (n,) of known steps. If the axis is a time or a
    fraction, the ``_step`` column of the run is used instead."""
    choices = [options.step] if options.step else [axis] + ([own] if own else [])
    for column in choices:
        if column not in table.columns:
            raise LogFormatError(f"{path} has no column {column!r} for --step; it has {', '.join(table.columns[:8])}")
        if _TIME.fullmatch(column) and column != options.step:
            continue
        value, state = table.numbers(column)
        with np.errstate(invalid="ignore"):
            known = (state == 1) & (value >= 0) & (value <= MAX_ITERATION) & (value == np.floor(value))
        fractions = (state == 1) & ~known
        if known.any() and (not fractions.any() or column == choices[-1]):
            table.refuse_rows(fractions, column, f"is not a whole number from 0 to {MAX_ITERATION}")
            table.refuse_text(column, state)
            return column, np.where(known, value, 0).astype(np.int64), known
    raise LogFormatError(
        f"{path}: the axis {axis!r} is not a step, and there is no column RUN - _step; export the chart with Step as "
        "its x axis"
    )


def _bound(table: Table, column: str | None, there: np.ndarray, value: np.ndarray) -> np.ndarray | None:
    if column is None:
        return None
    bound, state = table.numbers(column)
    return np.where(state == 1, bound, value)[there]


FORMAT = Format(
    "wandb", "a Weights & Biases export (CSV, JSON lines) or offline run (.wandb)", recognises, read,
    ("_step", "_runtime", "_timestamp", " - ", "__MIN", "wandb", "trainer/global_step"),
)  # fmt: skip
