"""MLflow: a tracking folder (``mlruns``), the folder of one run, or a SQLite file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.databases import is_sqlite, rows_of, tables_of
from stabilitylab.importers.formats import Format, Sample
from stabilitylab.importers.options import Options
from stabilitylab.importers.series import Log, Points, Refused, plain_number, whole_step, why_no_step

_INFINITE = 1.7976931348623157e308
"""The value that MLflow's database stores for infinity."""


def recognises(sample: Sample) -> bool:
    if sample.is_folder:
        return bool(_runs(sample.path))
    if not is_sqlite(sample.raw):
        return False
    tables = tables_of(sample.path)
    return {"key", "value", "step", "run_uuid"} <= set(tables.get("metrics", ()))


def read(path: Path, options: Options) -> list[Log]:
    """One log per run with metrics that is not deleted."""
    refused = Refused(path, options.strict)
    if path.is_dir():
        logs = [_folder(path, run, refused) for run in _runs(path)]
    else:
        logs = _database(path, refused)
    logs = [log for log in logs if log.series]
    if not logs:
        raise LogFormatError(f"{path} contains no run with metrics")
    refused.add_note(logs[0])
    return logs


def _runs(folder: Path) -> list[Path]:
    """The folders of runs: those with a subfolder ``metrics``, at most two levels deep."""
    for pattern in ("metrics", "*/metrics", "*/*/metrics"):
        folders = sorted(m.parent for m in folder.glob(pattern) if m.is_dir() and (m.parent / "meta.yaml").is_file())
        if folders:
            return [run for run in folders if not _is_deleted(run) and ".trash" not in run.parts]
    return []


def _is_deleted(run: Path) -> bool:
    return "lifecycle_stage: deleted" in _meta(run)


def _meta(run: Path) -> str:
    try:
        return (run / "meta.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _folder(path: Path, run: Path, refused: Refused) -> Log:
    named = re.search(r"^run_name: *(['\"]?)(.+?)\1 *$", _meta(run), re.MULTILINE)
    log = Log("mlflow", path, run=named[2] if named else run.name)
    points = Points()
    for file in sorted(f for f in (run / "metrics").rglob("*") if f.is_file()):
        name = file.relative_to(run / "metrics").as_posix()
        for line, text in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            cells = text.split()
            value = plain_number(cells[1]) if len(cells) >= 2 else None
            step = whole_step(cells[2]) if len(cells) >= 3 else None
            if not cells:
                continue
            if value is None or step is None:
                why = "not `timestamp value step`" if value is None or len(cells) < 3 else why_no_step(cells[2])
                refused.add(f"{name}, line {line}", why)
                continue
            points.row = int(plain_number(cells[0]) or 0)  # milliseconds, which give the order of logging
            points.add(name, step, value)
    log.series = points.series()
    return log


def _database(path: Path, refused: Refused) -> list[Log]:
    runs = {
        uuid: name or uuid
        for uuid, name in rows_of(path, "SELECT run_uuid, name FROM runs WHERE lifecycle_stage = 'active'")
    }
    columns = tables_of(path)["metrics"]
    is_nan = "is_nan" if "is_nan" in columns else "0"
    points: dict[str, Points] = {uuid: Points() for uuid in runs}
    sql = f"SELECT run_uuid, key, value, step, timestamp, {is_nan} FROM metrics ORDER BY timestamp, rowid"
    for place, (uuid, key, value, step, timestamp, nan) in enumerate(rows_of(path, sql), 1):
        if uuid not in points:
            continue
        number, at = plain_number(value), whole_step(step)
        if number is None or at is None:
            refused.add(f"row {place} ({key})", why_no_step(step) if at is None else f"{value!r} is not a number")
            continue
        if nan:
            number = np.nan
        elif abs(number) >= _INFINITE:
            number = np.copysign(np.inf, number)
        points[uuid].row = int(timestamp or 0)
        points[uuid].add(str(key), at, float(number))
    logs = []
    for uuid, name in runs.items():
        log = Log("mlflow", path, run=str(name))
        log.series = points[uuid].series()
        logs.append(log)
    return logs


FORMAT = Format(
    "mlflow", "MLflow's folder of runs (mlruns) or its SQLite file", recognises, read,
    ("mlruns", "mlflow", "meta.yaml", "metrics", ".db"),
)  # fmt: skip
