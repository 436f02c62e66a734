"""The manifest of a live run: which segments count, what they hold, and the checksum of each."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

MANIFEST = "manifest.json"
START = "start.json"


@dataclass(frozen=True)
class Segment:
    """One immutable Parquet file: `rows` rows of `table`, of iterations `first`..`last` (None without any)."""

    file: str
    table: str
    rows: int
    sha256: str
    first: int | None = None
    last: int | None = None
    level: int = 0  # how often its rows were gathered from smaller segments

    def describe(self) -> str:
        """What this segment holds, in words."""
        if self.rows < 0:
            return f"rows of {self.table}"
        span = "" if self.first is None else f" of iterations {self.first}..{self.last}"
        return f"{self.rows} rows of {self.table}{span}"


@dataclass(frozen=True)
class Manifest:
    """The state of `segments/`.

    `cut` is the resume point: the rows of an earlier run.duckdb that lie before it count too; None means that
    there is no earlier file. `meta` is the future `meta` table.
    """

    meta: dict[str, str]
    cut: int | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    segments: tuple[Segment, ...] = ()

    @property
    def status(self) -> str:
        return self.meta.get("status", "running")

    def with_segments(self, more: Iterable[Segment]) -> Manifest:
        return replace(self, segments=(*self.segments, *more))

    def with_meta(self, **more: str) -> Manifest:
        return replace(self, meta={**self.meta, **more})


def write_manifest(folder: Path, manifest: Manifest, name: str = MANIFEST) -> None:
    """Replace the manifest atomically: a reader sees the old one or the new one, never a part."""
    body = json.dumps(asdict(manifest), sort_keys=True)
    text = json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body})
    temporary = folder / f".{name}.tmp"
    with temporary.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(folder / name)
    sync_folder(folder)


def read_manifest(folder: Path) -> tuple[Manifest, list[str]]:
    """The manifest of `folder` and what is wrong with it.

    A damaged manifest does not take the run down: the segments that lie in the folder are read without their
    checksums, and the problem says so. Raises FileNotFoundError where there is no manifest.
    """
    path = folder / MANIFEST
    try:
        return _parse(path.read_bytes()), []
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError):
        pass
    try:
        start = _parse((folder / START).read_bytes())
    except (OSError, ValueError, KeyError, TypeError):
        start = Manifest(meta={}, cut=None)
    found = [
        Segment(file=file.name, table=file.name.rpartition("-")[0], rows=-1, sha256="")
        for file in sorted(folder.glob("*.parquet"))
    ]
    problem = f"{path.name} is damaged: {len(found)} segments are read without checking them"
    return replace(start, segments=tuple(found)), [problem]


def _parse(data: bytes) -> Manifest:
    outer = json.loads(data)
    body = outer["body"]
    if hashlib.sha256(body.encode()).hexdigest() != outer["sha256"]:
        raise ValueError("checksum")
    fields = json.loads(body)
    fields["segments"] = tuple(Segment(**entry) for entry in fields["segments"])
    return Manifest(**fields)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_segment(folder: Path, segment: Segment) -> str | None:
    """What is wrong with a segment, in one line with what it would have held; None if it is whole."""
    try:
        if not segment.sha256:
            if _is_parquet(folder / segment.file):
                return None
            reason = "is no Parquet file"
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
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(-4, os.SEEK_END)
        return head == file.read(4) == b"PAR1"


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
