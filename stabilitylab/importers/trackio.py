"""trackio: the SQLite file of a project, or the Parquet file that it exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.databases import is_sqlite, rows_of, tables_of
from stabilitylab.importers.formats import Format, Sample
from stabilitylab.importers.long_tables import wide_logs
from stabilitylab.importers.options import Options
from stabilitylab.importers.records import log_of_records
from stabilitylab.importers.series import Log, Refused
from stabilitylab.importers.tables import open_table

_COLUMNS = {"run_name", "step", "metrics"}


def recognises(sample: Sample) -> bool:
    if sample.is_folder:
        return bool(_databases(sample.path))
    if is_sqlite(sample.raw):
        return set(tables_of(sample.path).get("metrics", ())) >= _COLUMNS
    if sample.raw[:4] == b"PAR1":
        columns = open_table(sample.path, Options(), "trackio").columns
        return {"run_name", "step", "timestamp"} <= set(columns)
    return False


def read(path: Path, options: Options) -> list[Log]:
    """One log per run of the project."""
    if path.is_dir():
        return [log for file in _databases(path) for log in read(file, options)]
    if path.suffix.lower() == ".parquet":
        return wide_logs(open_table(path, options, "trackio"), options, ("step",))
    refused = Refused(path, options.strict)
    runs: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    run_id = "run_id" if "run_id" in tables_of(path)["metrics"] else "run_name"
    rows = rows_of(path, f"SELECT id, {run_id}, run_name, step, metrics FROM metrics ORDER BY id")
    for place, own, name, step, text in rows:
        try:
            record = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            refused.add(f"row {place}", "its metrics are not JSON")
            continue
        if isinstance(record, dict):
            runs.setdefault((str(own), str(name)), []).append((place, {**record, "step": step}))
    if not runs:
        raise LogFormatError(f"{path} contains no run")
    one = Options(**{**vars(options), "step": "step"})
    logs = [
        log_of_records(records, path, one, format="trackio", run=name, refused=Refused(path, options.strict))
        for (_, name), records in runs.items()
    ]
    refused.add_note(logs[0])
    return logs


def _databases(folder: Path) -> list[Path]:
    databases = []
    for file in sorted(folder.glob("*.db")):
        if set(tables_of(file).get("metrics", ())) >= _COLUMNS:
            databases.append(file)
    return databases


FORMAT = Format("trackio", "a trackio project (.db or .parquet)", recognises, read, ("trackio", ".db", "run_name"))
