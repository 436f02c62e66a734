"""Aim: metrics from a data frame (``Run.dataframe``, ``query_metrics(...).dataframe()``) or an export of its page."""

from __future__ import annotations

from pathlib import Path

from stabilitylab.importers.formats import Format, Sample
from stabilitylab.importers.long_tables import LongColumns, long_logs
from stabilitylab.importers.options import Options
from stabilitylab.importers.series import Log
from stabilitylab.importers.tables import open_table

_NAMES = ("metric.name", "metric_name", "metric")
_RUNS = ("run.hash", "run_hash", "hash", "run", "run.name")


def recognises(sample: Sample) -> bool:
    columns = {column.lower() for column in sample.columns}
    if sample.raw[:4] == b"PAR1":
        columns = {column.lower() for column in open_table(sample.path, Options(), "aim").columns}
    named = bool(columns & set(_NAMES)) and bool({"run.hash", "run_hash", "metric.name", "hash"} & columns)
    return named and {"step", "value"} <= columns


def read(path: Path, options: Options) -> list[Log]:
    """One log per run. The context of a metric (``subset``: ``val``) is prefixed to its name."""
    table = open_table(path, options, "aim")
    lower = {column.lower(): column for column in reversed(table.columns)}
    name = next(lower[known] for known in _NAMES if known in lower)
    run = next((lower[known] for known in _RUNS if known in lower), None)
    context = [
        column
        for column in table.columns
        if column.lower() in ("context", "metric.context", "subset")
        or column.lower().startswith(("context.", "metric.context."))
    ]
    logs = long_logs(table, LongColumns(options.step or lower["step"], name, lower["value"], run, context))
    for log in logs:
        for series in list(log.series.values()):
            plain = _plain(series.name)
            if plain != series.name and plain not in log.series:
                log.series[plain] = log.series.pop(series.name)
                series.name = plain
    return logs


def _plain(name: str) -> str:
    """``{'subset': 'val'}/loss`` -> ``val/loss``, for contexts written as dictionaries."""
    context, slash, tail = name.partition("}/")
    if not slash or not context.startswith("{"):
        return name.removeprefix("{}/")
    values = [part.split(":")[-1].strip(" '\"") for part in context[1:].split(",") if ":" in part]
    return "/".join([*values, tail])


FORMAT = Format(
    "aim", "metrics exported from Aim", recognises, read, ("run.hash", "metric.name", "run_hash", "context", "value")
)
