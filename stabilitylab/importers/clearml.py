"""ClearML: scalars returned by ``Task.get_reported_scalars()``, or a plot downloaded as JSON from the web page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.formats import Format, Sample, read_text, whole_json
from stabilitylab.importers.options import Options
from stabilitylab.importers.series import Log, Points, Refused, plain_number, whole_step, why_no_step

Curve = tuple[str, list[Any], list[Any]]


def recognises(sample: Sample) -> bool:
    if sample.is_folder or not sample.head.lstrip().startswith(("{", "[")):
        return False
    if '"x"' not in sample.head or '"y"' not in sample.head:
        return False
    try:
        return next(_curves(json.loads(read_text(sample.path))), None) is not None
    except (ValueError, OSError, EOFError, RecursionError):
        return False


def read(path: Path, options: Options) -> list[Log]:
    """One run. A series is named ``TITLE/SERIES``, or only ``TITLE`` if both are equal."""
    refused = Refused(path, options.strict)
    points = Points()
    place = 0
    for name, steps, values in _curves(whole_json(path)):
        for at, number in zip(steps, values, strict=False):
            place += 1
            step, value = whole_step(at), plain_number(number)
            if step is None or value is None:
                refused.add(
                    f"point {place} of {name}", why_no_step(at) if step is None else f"{number!r} is not a number"
                )
                continue
            points.row = place
            points.add(name, step, value)
    log = Log("clearml", path)
    log.series = points.series()
    if not log.series:
        raise LogFormatError(f"{path} contains no curve with integer steps; export scalars by iteration")
    refused.add_note(log)
    return [log]


def _curves(value: Any, title: str = "") -> Iterator[Curve]:
    """(name, x, y) of every curve in a nested value."""
    if isinstance(value, list):
        for entry in value:
            yield from _curves(entry, title)
    elif isinstance(value, dict):
        if isinstance(value.get("x"), list) and isinstance(value.get("y"), list):
            series = str(value.get("name") or "")
            yield "/".join(dict.fromkeys(part for part in (title, series) if part)) or "value", value["x"], value["y"]
            return
        for key, entry in value.items():
            if isinstance(entry, dict | list) and key not in ("layout", "config"):
                below = (
                    title
                    if key in ("data", "scalars", "metrics", "variants")
                    else "/".join(filter(None, (title, str(key))))
                )
                yield from _without_twin(entry, below)


def _without_twin(entry: Any, title: str) -> Iterator[Curve]:
    """The curves of an entry whose key repeats its name, which is used only once."""
    if isinstance(entry, dict) and isinstance(entry.get("x"), list):
        above, _, last = title.rpartition("/")
        if entry.get("name") in (last, None):
            entry = {**entry, "name": last}
            title = above
    yield from _curves(entry, title)


FORMAT = Format("clearml", "scalars exported from ClearML", recognises, read, ('"x"', '"y"', '"name"', ".json"))
