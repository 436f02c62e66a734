"""JSON lines, one object per record, as written by DINO, MAE and mmengine; or one JSON list of records."""

from __future__ import annotations

import json
from pathlib import Path

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.formats import Format, Sample, read_text
from stabilitylab.importers.huggingface import history_log, is_history
from stabilitylab.importers.options import Options
from stabilitylab.importers.records import Record, json_lines, log_of_records
from stabilitylab.importers.series import Log, Refused


def recognises(sample: Sample) -> bool:
    if sample.records and len(sample.lines) > 1:
        return True
    return sample.head.lstrip().startswith(("[", "{")) and bool(_whole(sample.path))


def read(path: Path, options: Options, format: str = "jsonl") -> list[Log]:
    """One run from a JSON lines file, a JSON list of objects, or an object of lists. NaN and Infinity, as written by
    Python, are accepted."""
    refused = Refused(path, options.strict)
    records = _whole(path) or list(json_lines(path, refused))
    if not records:
        why = f"; {refused.count} lines refused" if refused.count else ""
        raise LogFormatError(f"{path} does not contain one JSON object per line{why}")
    if is_history([record for _, record in records[:100]]):
        return [history_log(records, path, options, format, refused)]
    return [log_of_records(records, path, options, format=format, refused=refused)]


def _whole(path: Path) -> list[Record]:
    """The records of a file with a single JSON value: a list of objects, or lists of equal length by name."""
    try:
        value = json.loads(read_text(path))
    except (OSError, EOFError, ValueError, RecursionError):
        return []
    if isinstance(value, dict):
        columns = {name: cells for name, cells in value.items() if isinstance(cells, list)}
        lengths = {len(cells) for cells in columns.values()}
        if len(columns) < 2 or len(lengths) != 1:
            return []
        value = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if not isinstance(value, list):
        return []
    return [(place, record) for place, record in enumerate(value, 1) if isinstance(record, dict)]


FORMAT = Format(
    "jsonl", "JSON lines, one object per record", recognises, read, (".jsonl", ".ndjson", "{", '"step"', '"epoch"')
)
