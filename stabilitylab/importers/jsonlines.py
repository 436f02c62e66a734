"""JSON lines: one object a record, as DINO, MAE, mmengine and home-made loggers write them."""

from __future__ import annotations

from pathlib import Path

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.formats import Format, Sample
from stabilitylab.importers.huggingface import history_log, is_history
from stabilitylab.importers.options import Options
from stabilitylab.importers.records import json_lines, log_of_records
from stabilitylab.importers.series import Log, Refused


def recognises(sample: Sample) -> bool:
    return len(sample.records) > 0


def read(path: Path, options: Options, format: str = "jsonl") -> list[Log]:
    """One run from a file of JSON lines. NaN and Infinity, which Python writes, are read."""
    refused = Refused(path, options.strict)
    records = list(json_lines(path, refused))
    if not records:
        raise LogFormatError(
            f"{path} holds no JSON object a line" + (f"; {refused.count} lines refused" if refused.count else "")
        )
    if is_history([record for _, record in records[:100]]):
        return [history_log(records, path, options, format, refused)]
    return [log_of_records(records, path, options, format=format, refused=refused)]


FORMAT = Format(
    "jsonl", "JSON lines, one object a record", recognises, read, (".jsonl", ".ndjson", "{", '"step"', '"epoch"')
)
