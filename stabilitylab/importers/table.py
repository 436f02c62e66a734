"""CSV, TSV and Parquet tables: wide (one column per series) or long (one row per value)."""

from __future__ import annotations

from pathlib import Path

from stabilitylab.importers import names
from stabilitylab.importers.dialect import without_units
from stabilitylab.importers.formats import Format, Sample
from stabilitylab.importers.long_tables import RUNS, LongColumns, long_logs, wide_logs
from stabilitylab.importers.options import Options
from stabilitylab.importers.records import EPOCHS, STEPS
from stabilitylab.importers.series import Log
from stabilitylab.importers.tables import Table, open_table

LAYERS = ("layer", "layer_name", "parameter", "param", "param_name", "module", "block")
NAMES = ("name", "metric", "metric_name", "tag", "series", "key", "variable", "scalar")
VALUES = ("value", "values", "metric_value", "y")
_PARQUET = (".parquet", ".pq")


def recognises(sample: Sample) -> bool:
    if sample.is_folder:
        return False
    if sample.path.suffix.lower() in _PARQUET or sample.raw[:4] == b"PAR1":
        return True
    plain = without_units(sample.columns)
    columns = [column.lower() for column in plain]
    if len(columns) < 2 or len(sample.lines) < 2:
        return False
    steps = {name.lower() for name in (*STEPS, *EPOCHS)}
    gradients = [c for c in plain if names.total_section(c) is not None or names.layer_of(c) is not None]
    return bool(steps & set(columns)) or bool(gradients)


def read(path: Path, options: Options) -> list[Log]:
    """One run, or one per value of a column ``run``. A table with a value column and a column such as ``layer`` or
    ``name`` is long (one row per value); other tables are wide (one column per series)."""
    table = open_table(path, options, "table")
    columns = _long_columns(table, options)
    return long_logs(table, columns) if columns else wide_logs(table, options)


def _long_columns(table: Table, options: Options) -> LongColumns | None:
    lower = {column.lower(): column for column in reversed(table.columns)}

    def one_of(wanted: tuple[str, ...]) -> str | None:
        return next((lower[name.lower()] for name in wanted if name.lower() in lower), None)

    step = options.step if options.step in table.columns else one_of((*STEPS, *EPOCHS))
    layer = one_of(LAYERS)
    if step is None:
        return None
    run = next((lower[name] for name in RUNS if name in lower and table.looks_like_text(lower[name])), None)
    if layer is not None:
        norms = [c for c in table.columns if names.total_section(c) is not None] or [
            c for c in table.columns if c.lower() == "norm"
        ]
        value = norms[0] if norms else one_of(VALUES)
        if value is not None:
            largest = next((c for c in table.columns if c.lower() in ("grad_max", "max_grad", "grad_inf_norm")), None)
            return LongColumns(step, layer, value, run, is_layer=True, largest=largest, depth=lower.get("depth"))
    name, value = one_of(NAMES), one_of(VALUES)
    if name is None or value is None or not table.looks_like_text(name):
        return None
    return LongColumns(step, name, value, run, num_samples=lower.get("num_samples"))


FORMAT = Format(
    "table", "a CSV, TSV or Parquet table with a step column", recognises, read,
    (".csv", ".tsv", ".parquet", "step", "iteration", "grad_norm", "layer"),
)  # fmt: skip
