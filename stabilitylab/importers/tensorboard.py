"""TensorBoard event files: scalars in all encodings, histograms of gradients, restarts and subfolders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stabilitylab.errors import LogFormatError
from stabilitylab.importers import names
from stabilitylab.importers.formats import Format, Sample
from stabilitylab.importers.options import Options
from stabilitylab.importers.series import MAX_ITERATION, Log, Points, Refused, shortened

LONGEST_TAG = 500
_SECTION = re.compile(r"train(ing)?|val(id|idation)?|eval(uation)?|test(ing)?|dev|metrics", re.IGNORECASE)
_HPARAMS = re.compile(r"\d{9,}(\.\d+)?")


@dataclass
class _Part:
    """The event files of one folder: points, skipped tags, and restarts that the files declare."""

    folder: Path
    points: Points = field(default_factory=Points)
    histograms: Points = field(default_factory=Points)
    restarts: list[tuple[int, int]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    files: int = 0

    @property
    def tags(self) -> set[str]:
        return self.points.names()


def recognises(sample: Sample) -> bool:
    if sample.is_folder:
        return next(sample.path.rglob("*tfevents*"), None) is not None
    return "tfevents" in sample.path.name or b"brain.Event:" in sample.raw[:64]


def read(path: Path, options: Options) -> list[Log]:
    """One run from the event files of a folder. Subfolders that belong to it (``train``, ``validation``, those of
    ``add_scalars`` and ``add_hparams``) are merged; other subfolders are separate runs."""
    _require_library()
    files = [path] if path.is_file() else sorted(path.rglob("*tfevents*"))
    files = [file for file in files if file.is_file()]
    if not files:
        raise LogFormatError(f"{path} contains no event file (*tfevents*); pass TensorBoard's log folder")
    refused = Refused(path, options.strict)
    parts: dict[Path, _Part] = {}
    for file in files:
        parts.setdefault(file.parent, _Part(file.parent)).files += 1
    for folder, part in parts.items():
        for file in sorted((f for f in files if f.parent == folder), key=_begins):
            _read_file(file, part, refused)
    logs = []
    home = path.parent if path.is_file() else path
    for main, joined in _runs(parts, home).items():
        log = _log(path, main, joined)
        log.run = "" if main == home else main.relative_to(home).as_posix()
        logs.append(log)
    if refused.count:
        refused.add_note(logs[0])
    return logs


def _require_library() -> None:
    try:
        from tensorboard.backend.event_processing import event_file_loader  # noqa: F401
    except ImportError:
        raise LogFormatError("reading event files needs: pip install 'stabilitylab[tensorboard]'") from None


def _begins(file: Path) -> tuple[int, str]:
    """Sort key that orders event files by their start time, which is part of their name."""
    match = re.search(r"tfevents\.(\d+)\.", file.name)
    return (int(match[1]) if match else 0, file.name)


def _read_file(file: Path, part: _Part, refused: Refused) -> None:
    points, histograms = part.points, part.histograms
    for event in _events(file, refused):
        points.row += 1
        histograms.row = points.row
        if event.HasField("session_log") and event.session_log.status == event.session_log.START and event.step > 0:
            part.restarts.append((points.row, event.step))
        for value in event.summary.value:
            if len(value.tag) > LONGEST_TAG:
                part.skipped["a tag that is too long"] += 1
                continue
            number, norm = _scalar(value), _histogram(value)
            if number is None and norm is None:
                part.skipped[value.tag] += 1
                continue
            if not 0 <= event.step <= MAX_ITERATION:
                if names.is_axis(value.tag):  # counted in tokens, and skipped later
                    continue
                refused.add(f"tag {value.tag}", f"step {event.step} is not from 0 to {MAX_ITERATION}")
            elif number is not None:
                points.add(value.tag, event.step, number)
            elif norm is not None:
                histograms.add(value.tag, event.step, norm)


def _events(file: Path, refused: Refused) -> Iterator[Any]:
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    place = 0
    try:
        for place, raw in enumerate(RawEventFileLoader(str(file)).Load(), 1):
            try:
                yield Event.FromString(raw)
            except DecodeError:
                refused.add(f"{file.name}, record {place}", "not an event")
    except LogFormatError:
        raise
    except Exception as error:  # the error of the library for a damaged record depends on the backend
        refused.add(f"{file.name}, after record {place}", f"damaged: {str(error)[:80]}")


def _scalar(value: Any) -> float | None:
    """The number in a summary value of any encoding; None if it is not a single number."""
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    if kind != "tensor" or value.metadata.plugin_data.plugin_name in ("text", "images", "audio", "histograms"):
        return None
    tensor = value.tensor
    size = 1
    for dimension in tensor.tensor_shape.dim:
        size *= dimension.size
    if size != 1:
        return None
    from tensorboard.util import tensor_util

    try:
        array = tensor_util.make_ndarray(tensor)
    except (TypeError, ValueError):
        return None
    if array.dtype.kind not in "fiu" or array.size != 1:
        return None
    return float(array.reshape(-1)[0])


def _histogram(value: Any) -> float | None:
    """The L2 norm of the values in a histogram. It is exact if the histogram contains the sum of squares, else computed
    from its buckets (the newer encoding). None for other values."""
    if value.WhichOneof("value") != "histo":
        return None
    return float(np.sqrt(max(value.histo.sum_squares, 0.0)))


def _runs(parts: dict[Path, _Part], home: Path) -> dict[Path, list[tuple[str, _Part]]]:
    """Folder of each run -> the parts that are merged into it, each with a prefix for its tags."""
    runs: dict[Path, list[tuple[str, _Part]]] = {}
    for folder in sorted(parts, key=lambda folder: len(folder.parts)):
        part = parts[folder]
        above = next((up for up in folder.parents if up in runs), None)
        prefix = _joins(part, above, parts, home)
        if prefix is None:
            runs[folder] = [("", part)]
        else:
            runs.setdefault(above or folder.parent, []).append((prefix, part))
    return runs


def _joins(part: _Part, above: Path | None, parts: dict[Path, _Part], home: Path) -> str | None:
    """The prefix with which a folder is merged into the run above it; None if it is a separate run."""
    name = part.folder.name
    if part.folder == home:
        return None
    if _SECTION.fullmatch(name) and not (above is None and len(parts) == 1):
        return f"{name}/"
    if above is None:
        return None
    if _HPARAMS.fullmatch(name) or not part.tags:
        return ""
    # add_scalars("loss", {"train": ...}) writes the tag "loss" into a folder of the run called loss_train.
    for tag in part.tags:
        flat = tag.replace("/", "_")
        if len(part.tags) == 1 and name.startswith(f"{flat}_"):
            return f"{name[len(flat) + 1 :]}\0"
    if above in parts and not part.tags & parts[above].tags:
        return f"{name}/"
    return None


def _log(path: Path, main: Path, joined: list[tuple[str, _Part]]) -> Log:
    log = Log("tensorboard", path)
    row = 0
    skipped: Counter[str] = Counter()
    for prefix, part in joined:
        series = part.points.series()
        approximate = {tag: s for tag, s in part.histograms.series().items() if names.layer_of(tag) is not None}
        left = [tag for tag in part.histograms.series() if tag not in approximate]
        skipped.update(dict.fromkeys(left, 1))
        for tag, points in {**approximate, **series}.items():
            below, added, _ = prefix.partition("\0")
            name = f"{tag}/{below}" if added else f"{prefix}{tag}"
            if name in log.series:
                continue
            points.name = name
            points.row = points.row + row
            log.series[name] = points
        log.restarts += [(at + row, step) for at, step in part.restarts]
        skipped.update(part.skipped)
        if approximate:
            log.note(
                "histograms",
                f"{len(approximate)} histograms of gradients: the norm is the square root of their sum of squares",
            )
    if skipped:
        log.note("skipped", f"{len(skipped)} non-scalar tags were skipped ({shortened(sorted(skipped))})")
    files = sum(part.files for _, part in joined)
    folders = [part.folder.name for _, part in joined if part.folder != main]
    if files > 1:
        more = f", including the subfolders {shortened(folders)}" if folders else ""
        log.note("files", f"{files} event files were read as one run{more}")
    return log


FORMAT = Format("tensorboard", "TensorBoard event files", recognises, read, ("tfevents", "events.out", "brain.Event"))
