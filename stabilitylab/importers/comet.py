"""Comet: metrics returned by ``APIExperiment.get_metrics()``, or the archive of an offline experiment."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.formats import Format, Sample, whole_json
from stabilitylab.importers.long_tables import LongColumns, long_logs
from stabilitylab.importers.options import Options
from stabilitylab.importers.series import Log, Points, Refused, plain_number, whole_step, why_no_step
from stabilitylab.importers.tables import open_table

_MESSAGES = "messages.json"


def recognises(sample: Sample) -> bool:
    if sample.is_folder:
        return False
    if sample.raw[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(sample.path) as archive:
                return _MESSAGES in archive.namelist()
        except (zipfile.BadZipFile, OSError):
            return False
    return '"metricName"' in sample.head or sample.has("metricName", "metricValue")


def read(path: Path, options: Options) -> list[Log]:
    """One log per experiment. The context of a metric (``train``, ``validate``) is prefixed to its name."""
    sample = Sample(path)
    archived = sample.raw.startswith(b"PK")
    if sample.columns and not archived:
        table = open_table(path, options, "comet")
        key = next((c for c in ("experimentKey", "experiment_key") if c in table.columns), None)
        contexts = [c for c in ("runContext", "context") if c in table.columns]
        return long_logs(table, LongColumns("step", "metricName", "metricValue", key, contexts))
    refused = Refused(path, options.strict)
    runs: dict[str, Points] = {}
    for place, (run, metric) in enumerate(_archived(path, refused) if archived else _exported(whole_json(path)), 1):
        name = metric.get("metricName")
        if not isinstance(name, str):
            continue
        value, step = plain_number(metric.get("metricValue")), whole_step(metric.get("step"))
        if value is None or step is None:
            refused.add(f"entry {place} ({name})", why_no_step(metric.get("step")) if step is None else "not a number")
            continue
        context = metric.get("runContext") or metric.get("context")
        if isinstance(context, str) and not name.startswith((f"{context}_", f"{context}/")):
            name = f"{context}/{name}"
        points = runs.setdefault(run, Points())
        points.row = place
        points.add(name, step, value)
    logs = []
    for run, points in runs.items():
        log = Log("comet", path, run=run)
        log.series = points.series()
        logs.append(log)
    if not logs:
        raise LogFormatError(f"{path} contains no metric with a step; export metrics with their steps")
    refused.add_note(logs[0])
    return logs


def _exported(value: Any, run: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(experiment, metric) of each entry, in any nesting of lists (by experiment, by metric)."""
    if isinstance(value, list):
        for entry in value:
            yield from _exported(entry, run)
    elif isinstance(value, dict):
        if "metricName" in value and "metricValue" in value:
            yield str(value.get("experimentKey") or run), value
        else:
            own = str(value.get("experimentKey") or run)
            for key, entry in value.items():
                if isinstance(entry, list | dict):
                    nested = own or (key if len(key) == 32 else "")
                    yield from _exported(entry, nested)


def _archived(path: Path, refused: Refused) -> Iterator[tuple[str, dict[str, Any]]]:
    """The metrics of an offline experiment, whose messages are JSON lines."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_MESSAGES) as file:
            for line, raw in enumerate(file, 1):
                try:
                    message = json.loads(raw)
                    kind, payload = message.get("type"), message.get("payload", {})
                    if kind == "metric_msg":
                        yield "", payload.get("metric", payload)
                except (ValueError, AttributeError, RecursionError):
                    refused.add(line, "not a message")
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise LogFormatError(f"{path} is not the archive of an offline experiment: {error}") from None


FORMAT = Format(
    "comet", "metrics exported from Comet, or an offline experiment's .zip", recognises, read,
    ('"metricName"', '"metricValue"', "metricName", "runContext", "experimentKey", ".zip"),
)  # fmt: skip
