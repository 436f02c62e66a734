"""Long tables (each row is one value of one series at one step) and wide tables (one column per series)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabilitylab.errors import LogFormatError
from stabilitylab.importers import names
from stabilitylab.importers.epochs import Unrolled, counted_on
from stabilitylab.importers.options import Options
from stabilitylab.importers.records import EPOCHS, STEPS
from stabilitylab.importers.series import MAX_ITERATION, Log, Series, shortened
from stabilitylab.importers.tables import COLUMNS_AT_A_TIME, Table

RUNS = (
    "run",
    "run_id",
    "run_name",
    "run.name",
    "run.hash",
    "run_uuid",
    "experiment",
    "experiment_key",
    "custom_run_id",
)
_INTERNAL = re.compile(r"_.*|timestamp|time|wall_time|date(time)?|column 1|unnamed: 0|index|created_at", re.IGNORECASE)


@dataclass(frozen=True)
class LongColumns:
    """The roles of the columns of a long table. ``context``: columns whose text is prefixed to the name of a series.
    ``is_layer``: names are layers and values are their norms."""

    step: str
    name: str
    value: str
    run: str | None = None
    context: Sequence[str] = ()
    is_layer: bool = False
    largest: str | None = None
    depth: str | None = None
    num_samples: str | None = None


def long_logs(table: Table, columns: LongColumns) -> list[Log]:
    """One log per run from a long table."""
    step, known = _whole_steps(table, columns.step)
    unrolled = _across_epochs(table, columns.step, step, known)
    value, state = table.numbers(columns.value)
    table.refuse_text(columns.value, state)
    known &= state == 1
    del state
    code, named = table.codes([*([columns.run] if columns.run else []), *columns.context, columns.name])
    nameless = np.array([not parts[-1] for parts in named], dtype=bool)[code] if named else np.zeros(0, dtype=bool)
    table.refuse_rows(nameless & known, columns.name, "is not a name")
    known &= ~nameless
    samples = _optional(table, columns.num_samples)
    largest = _optional(table, columns.largest)
    depth = _optional(table, columns.depth)
    order = np.argsort(code, kind="stable")
    bounds = np.searchsorted(code[order], np.arange(len(named) + 1))
    logs: dict[str, Log] = {}
    for place, parts in enumerate(named):
        rows = order[bounds[place] : bounds[place + 1]]
        rows = rows[known[rows]]
        if len(rows) == 0:
            continue
        run = parts[0] if columns.run else ""
        log = logs.setdefault(run, Log(table.format, table.path, run=run))
        name = "/".join(part for part in parts[1 if columns.run else 0 :] if part)
        counted = None if samples is None else np.where(np.isfinite(samples[rows]), samples[rows], -1).astype(np.int64)
        log.series[name] = Series(name, step[rows], value[rows], rows.astype(np.int64), num_samples=counted)
        if columns.is_layer:
            log.layers[name] = name
            if largest is not None and np.isfinite(largest[rows]).any():
                there = rows[~np.isnan(largest[rows])]
                tag = f"{name} (largest)"
                log.series[tag] = Series(tag, step[there], largest[there], there.astype(np.int64))
                log.maxima[tag] = name
            if depth is not None and np.isfinite(depth[rows[0]]):
                log.depths[name] = int(depth[rows[0]])
    _add_notes(table, list(logs.values()), unrolled, columns.step)
    return list(logs.values())


def wide_logs(table: Table, options: Options, steps: Sequence[str] = STEPS) -> list[Log]:
    """One log per run from a wide table."""
    step_name = _step_column(table, options, steps)
    if step_name:
        step, known = _whole_steps(table, step_name)
        unrolled = _across_epochs(table, step_name, step, known)
    else:
        unrolled = None
        step, known = np.arange(table.rows, dtype=np.int64), np.ones(table.rows, dtype=bool)
    run_column = next((name for name in RUNS if name in table.columns and table.looks_like_text(name)), None)
    code, runs = table.codes([run_column]) if run_column else (np.zeros(table.rows, np.int32), [("",)])
    logs = [Log(table.format, table.path, run=run[0]) for run in runs]
    chosen = [name for name in table.columns if name not in (step_name, run_column) and not _is_internal(name, options)]
    skipped = []
    for start in range(0, len(chosen), COLUMNS_AT_A_TIME):
        part = chosen[start : start + COLUMNS_AT_A_TIME]
        for name, (value, state) in table.many_numbers(part).items():
            number = state == 1
            if (state == 2).sum() > number.sum():
                skipped.append(name)
                continue
            table.refuse_text(name, state)
            for place, log in enumerate(logs):
                rows = np.flatnonzero(number & known & (code == place))
                if len(rows):
                    log.series[name] = Series(name, step[rows], value[rows], rows)
    for log in logs:
        if skipped:
            columns = "1 non-numeric column was" if len(skipped) == 1 else f"{len(skipped)} non-numeric columns were"
            log.note("skipped", f"{columns} skipped ({shortened(skipped)})")
        if not step_name:
            log.note("row_numbers", "the table has no step column, so its rows are numbered from 0")
        if step_name in EPOCHS:
            log.axis = "epoch"
            log.note("axis", "the log has no step, so the axis is the epoch and each row covers a whole epoch")
        if options.grads is None:
            _plain_layers(table, log)
    _add_notes(table, logs, unrolled, step_name)
    return [log for log in logs if log.series]


def _plain_layers(table: Table, log: Log) -> None:
    """Handle ``grad_norms.csv`` with one column per layer, where only the file name shows what the columns are."""
    if not re.search(r"grad", table.path.stem, re.IGNORECASE):
        return
    gradients = [n for n in log.series if names.total_section(n) is not None or names.layer_of(n) is not None]
    if gradients or any(names.is_statistic(name) for name in log.series):
        return
    others = (names.is_loss, names.is_learning_rate, names.is_metric, names.is_no_layer)
    layers = [
        name for name in log.series if not any(is_other(name) for is_other in others) and name.lower() not in STEPS
    ]
    log.layers.update({name: name for name in layers if name not in EPOCHS})
    if log.layers:
        log.note(
            "plain_layers",
            f"{len(log.layers)} columns are treated as layers, because the file is called {table.path.name}",
        )


def _step_column(table: Table, options: Options, steps: Sequence[str]) -> str:
    if options.step is not None:
        if options.step not in table.columns:
            raise LogFormatError(
                f"{table.path} has no column {options.step!r} for --step; it has {shortened(table.columns, 8)}"
            )
        return options.step
    lower = {column.lower(): column for column in reversed(table.columns)}
    chosen = next((lower[name.lower()] for name in (*steps, *EPOCHS) if name.lower() in lower), "")
    if not chosen and not any(names.total_section(n) is not None or names.layer_of(n) for n in table.columns):
        raise LogFormatError(
            f"{table.path} has no step column (one of {', '.join(dict.fromkeys(steps))}); it has "
            f"{shortened(table.columns, 8)}; choose one with --step"
        )
    return chosen


def _is_internal(name: str, options: Options) -> bool:
    if name in {options.loss, *(metric.name for metric in options.metrics)}:
        return False
    return _INTERNAL.fullmatch(name) is not None or name in STEPS


def _whole_steps(table: Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (rows,) int64 and a mask (rows,) of valid steps. Other rows are refused."""
    value, state = table.numbers(column)
    table.refuse_text(column, state)
    with np.errstate(invalid="ignore"):
        known = (state == 1) & (value >= 0) & (value <= MAX_ITERATION) & (value == np.floor(value))
    table.refuse_rows((state == 1) & ~known, column, f"is not a whole number from 0 to {MAX_ITERATION}")
    table.refuse_rows(state == 0, column, "is not a step")
    return np.where(known, value, 0).astype(np.int64), known


def _optional(table: Table, column: str | None) -> np.ndarray | None:
    if column is None or column not in table.columns:
        return None
    value, state = table.numbers(column)
    return np.where(state == 1, value, np.nan)


def _across_epochs(table: Table, step_name: str, step: np.ndarray, known: np.ndarray) -> Unrolled | None:
    """Change ``step`` in place to one that counts on through all epochs, if it starts again in each one."""
    epoch_name = next((name for name in table.columns if name.lower() == "epoch"), None)
    if epoch_name is None or step_name in (epoch_name, "_step"):
        return None
    epoch, state = table.numbers(epoch_name)
    both = known & (state == 1)
    if not both.any() or (epoch[both] != np.floor(epoch[both])).any() or epoch[both].min() < 0:
        return None
    unrolled = counted_on(step[both], epoch[both].astype(np.int64))
    if unrolled is not None:
        step[both] = unrolled.step
    return unrolled


def _add_notes(table: Table, logs: Sequence[Log], unrolled: Unrolled | None, step_name: str) -> None:
    for log in logs:
        if unrolled is not None:
            unrolled.add_note(log, step_name)
    if logs:
        table.refused.add_note(logs[0])
