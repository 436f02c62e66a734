"""The manifest of a live run: its valid segments, their contents and checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from stabilitylab.store.schema import TABLES

MANIFEST = "manifest.json"
START = "start.json"
_SEGMENT = re.compile(r"([a-z_]+)-[0-9]+\.parquet")


@dataclass(frozen=True)
class Segment:
    """One immutable Parquet file with `rows` rows of `table` from iterations `first`..`last` (None without rows)."""

    file: str
    table: str
    rows: int
    sha256: str
    first: int | None = None
    last: int | None = None
    level: int = 0  # how often its rows were merged from smaller segments

    def describe(self) -> str:
        """A description of the rows in this segment."""
        if self.rows < 0:
            return f"rows of {self.table}"
        span = "" if self.first is None else f" of iterations {self.first}..{self.last}"
        return f"{self.rows} rows of {self.table}{span}"


@dataclass(frozen=True)
class Manifest:
    """The state of `segments/`.

    `cut` is the iteration at which the run was resumed: the rows of an earlier run.duckdb before it are part of the
    run. None means that there is no earlier file. `meta` is the content of the future `meta` table.
    """

    meta: dict[str, str]
    cut: int | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    origin_known: bool = True
    """False if both manifest.json and start.json are damaged, so that it is unknown whether the run was resumed."""
    segments: tuple[Segment, ...] = ()

    @property
    def status(self) -> str:
        return self.meta.get("status", "running")

    def with_segments(self, more: Iterable[Segment]) -> Manifest:
        return replace(self, segments=(*self.segments, *more))

    def with_meta(self, **more: str) -> Manifest:
        return replace(self, meta={**self.meta, **more})


def write_manifest(folder: Path, manifest: Manifest, name: str = MANIFEST) -> None:
    """Replace the manifest atomically: a reader sees either the old or the new one."""
    fields = {name: value for name, value in asdict(manifest).items() if name != "origin_known"}
    body = json.dumps(fields, sort_keys=True)
    text = json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body})
    temporary = folder / f".{name}.tmp"
    with temporary.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(folder / name)
    with contextlib.suppress(OSError):  # the manifest is already replaced, so do not report an error
        sync(folder)


def read_manifest(folder: Path) -> tuple[Manifest, list[str]]:
    """The manifest of `folder` and a list of its problems.

    If the manifest is damaged, the segments in the folder are used without checking checksums, and this is listed as a
    problem. Raises FileNotFoundError if there is no manifest.
    """
    path = folder / MANIFEST
    try:
        return _parse(read_regular(path)), []
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    try:
        start = _parse(read_regular(folder / START))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        start = Manifest(meta={}, cut=None, origin_known=False)
    segments = [
        Segment(file=file.name, table=file.name.rpartition("-")[0], rows=-1, sha256="")
        for file in sorted(folder.glob("*.parquet"))
        if segment_table(file.name)
    ]
    problem = f"{path.name} is damaged: {len(segments)} segments are read without checking their checksums"
    return replace(start, segments=tuple(segments)), [problem]


def read_regular(path: Path) -> bytes:
    """Read a regular file. Raises OSError for anything else, such as a pipe, which would block."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return path.read_bytes()


def _parse(data: bytes) -> Manifest:
    outer = json.loads(data)
    body = outer["body"]
    if hashlib.sha256(body.encode()).hexdigest() != outer["sha256"]:
        raise ValueError("checksum")
    fields = json.loads(body)
    segments = tuple(Segment(**entry) for entry in fields["segments"])
    if any(segment_table(segment.file) != segment.table for segment in segments):
        raise ValueError("segment name and table do not match")
    meta = {str(key): str(value) for key, value in fields["meta"].items()}
    cut = None if fields["cut"] is None else int(fields["cut"])
    return Manifest(meta=meta, cut=cut, id=str(fields["id"]), segments=segments)


def segment_table(file: str) -> str | None:
    """The table of a segment file by its name; None if it is not the name of a segment."""
    match = _SEGMENT.fullmatch(file)
    return match[1] if match and match[1] in TABLES else None


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_segment(folder: Path, segment: Segment) -> str | None:
    """A one-line description of a damaged segment and the rows it lacks; None if the segment is intact."""
    try:
        path = folder / segment.file
        if path.is_symlink() or (path.exists() and not path.is_file()):  # links lead elsewhere, pipes block
            reason = "is not a regular file"
        elif not segment.sha256:
            if _is_parquet(folder / segment.file):
                return None
            reason = "is not a Parquet file"
        elif file_sha256(folder / segment.file) == segment.sha256:
            return None
        else:
            reason = "does not match its checksum"
    except FileNotFoundError:
        reason = "is missing"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    return f"segment {segment.file} {reason}: left out {segment.describe()}"


def _is_parquet(path: Path) -> bool:
    if path.stat().st_size < 8:
        return False
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(-4, os.SEEK_END)
        return head == file.read(4) == b"PAR1"


def sync(path: Path) -> None:
    """fsync a file, or a folder, so that renames in it survive a power failure."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
