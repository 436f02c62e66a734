"""Offline runs of W&B: ``run-ID.wandb``, a log of protocol buffers, which are parsed with wandb's own classes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.options import Options
from stabilitylab.importers.records import log_of_records
from stabilitylab.importers.series import Log, Refused

_BLOCK = 32 * 1024
_FILE_HEADER = 7
_RECORD = struct.Struct("<IHB")  # checksum, length, type
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def offline_files(folder: Path) -> Iterator[Path]:
    """The offline runs in a ``wandb`` folder or in the folder of one run. Skips the link ``latest-run``."""
    for pattern in ("*.wandb", "*run-*/*.wandb", "wandb/*run-*/*.wandb"):
        yield from (file for file in folder.glob(pattern) if not file.parent.is_symlink())


def read_offline(path: Path, options: Options) -> Log:
    """Read an offline run. From a truncated file of a killed run, all complete records are read."""
    try:
        from wandb.proto import wandb_internal_pb2 as messages
    except ImportError:
        raise LogFormatError(f"reading {path.name} needs: pip install 'stabilitylab[logs]'") from None
    from google.protobuf.message import DecodeError

    refused = Refused(path, options.strict)
    records: list[tuple[int, dict[str, Any]]] = []
    run = path.stem.removeprefix("run-")
    ended = False
    for place, raw in enumerate(_messages(path, refused), 1):
        record: Any = getattr(messages, "Record")()  # noqa: B009  (made by protobuf at run time)
        try:
            record.ParseFromString(raw)
        except DecodeError:
            refused.add(f"record {place}", "not a W&B record")
            continue
        kind = record.WhichOneof("record_type")
        if kind == "run" and record.run.display_name:
            run = record.run.display_name
        elif kind == "exit":
            ended = True
        elif kind == "history":
            records.append((place, _items(record.history)))
    log = log_of_records(records, path, options, format="wandb", run=run, refused=refused)
    if not ended:
        log.note("unfinished", "the file has no final record: the run was killed or is still running")
    log.series = dict(sorted(log.series.items()))  # wandb writes the entries of a step in any order
    return log


def _items(history: Any) -> dict[str, Any]:
    """The record of one step. Nested dictionaries, including histograms, are stored leaf by leaf and are rebuilt."""
    items: dict[str, Any] = {}
    for item in history.item:
        keys = [item.key] if item.key else list(item.nested_key)
        try:
            value = json.loads(item.value_json)
        except (ValueError, RecursionError):
            continue
        inside = items
        for key in keys[:-1]:
            below = inside.setdefault(key, {})
            inside = below if isinstance(below, dict) else {}
        if keys:
            inside[keys[-1]] = value
    if "_step" not in items and history.HasField("step"):
        items["_step"] = history.step.num
    return items


def _messages(path: Path, refused: Refused) -> Iterator[bytes]:
    """The messages of the file, which has LevelDB's log format: blocks of 32 KiB, in which a message is one or several
    records. The Python package of wandb no longer contains a reader for it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LogFormatError(f"cannot read {path}: {error.strerror}") from None
    if data[:4] != b":W&B":
        raise LogFormatError(f"{path} is not a W&B offline run")
    place = _FILE_HEADER
    parts: list[bytes] = []
    while place + _RECORD.size <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _RECORD.size:
            place += left
            continue
        _, length, kind = _RECORD.unpack_from(data, place)
        if kind == 0 and length == 0:
            place += left
            continue
        start = place + _RECORD.size
        if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or length > left - _RECORD.size:
            refused.add(f"byte {place}", "damaged; the rest of the file cannot be read")
            return
        if start + length > len(data):
            refused.add(f"byte {place}", "the last record is incomplete, as after a killed run")
            return
        parts = [data[start : start + length]] if kind in (_WHOLE, _FIRST) else [*parts, data[start : start + length]]
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)
            parts = []
        place = start + length
