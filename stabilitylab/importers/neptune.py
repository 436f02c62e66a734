"""Neptune: Parquet files of the exporter, ``fetch_metrics`` as CSV or Parquet, and series downloaded from its page."""

from __future__ import annotations

from pathlib import Path

from stabilitylab.importers.formats import Format, Sample
from stabilitylab.importers.long_tables import LongColumns, long_logs, wide_logs
from stabilitylab.importers.options import Options
from stabilitylab.importers.series import Log
from stabilitylab.importers.tables import Table, open_parquet_folder, open_table

_EXPORTED = {"attribute_path", "step", "float_value"}


def recognises(sample: Sample) -> bool:
    if sample.is_folder:
        files = _files(sample.path)
        return bool(files) and set(open_table(files[0], Options(), "neptune").columns) >= _EXPORTED
    if sample.raw[:4] == b"PAR1":
        columns = set(open_table(sample.path, Options(), "neptune").columns)
        return columns >= _EXPORTED or _is_fetched(columns)
    return set(sample.columns) >= _EXPORTED or _is_fetched(set(sample.columns))


def read(path: Path, options: Options) -> list[Log]:
    """One log per run."""
    if path.is_dir():
        table = open_parquet_folder(_files(path), path, options, "neptune")
    else:
        table = open_table(path, options, "neptune")
    if set(table.columns) >= _EXPORTED:
        return _exported(table)
    return wide_logs(table, options, ("step",))


def _exported(table: Table) -> list[Log]:
    """Rows of the exporter, one value of one attribute each. Rows without step or number are parameters and texts."""
    run = next((c for c in ("run_id", "custom_run_id") if c in table.columns), None)
    table.keep(f"{table.cell('float_value')} IS NOT NULL AND {table.cell('step')} IS NOT NULL")
    return long_logs(table, LongColumns("step", "attribute_path", "float_value", run))


def _is_fetched(columns: set[str]) -> bool:
    """Whether this is a data frame of ``fetch_metrics``: run (or experiment) and step, then one column per
    attribute."""
    return "step" in columns and bool({"run", "experiment"} & columns) and any("/" in c for c in columns)


def _files(folder: Path) -> list[Path]:
    return sorted(file for pattern in ("*.parquet", "*/*.parquet", "*/*/*.parquet") for file in folder.glob(pattern))


FORMAT = Format(
    "neptune", "a Neptune export (Parquet of neptune-exporter, or fetch_metrics)", recognises, read,
    ("attribute_path", "float_value", "custom_run_id", "project_id", "part_0.parquet"),
)  # fmt: skip
