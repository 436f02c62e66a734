"""The interface of an importer, and the sample of a file by which it detects its format."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.dialect import Dialect, dialect_of
from stabilitylab.importers.options import Options
from stabilitylab.importers.series import Log

_HEAD_BYTES = 256 * 1024


class Sample:
    """The beginning of a file, or a folder. ``head``: text, empty for binary files and folders."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_folder = path.is_dir()
        self.raw = b""
        if not self.is_folder:
            try:
                with open_log(path) as file:
                    self.raw = file.read(_HEAD_BYTES)
            except (OSError, EOFError) as error:
                raise LogFormatError(f"cannot read {path}: {_why(error)}") from None

    @cached_property
    def head(self) -> str:
        raw = self.raw.removeprefix(b"\xef\xbb\xbf")
        return "" if b"\0" in raw[:4096] else raw.decode("utf-8", errors="replace")

    @cached_property
    def lines(self) -> list[str]:
        """Complete, non-blank lines of the head."""
        lines = self.head.splitlines()
        if len(self.raw) == _HEAD_BYTES:
            lines = lines[:-1]
        return [line for line in lines if line.strip()]

    @cached_property
    def columns(self) -> list[str]:
        """The cells of the first line if it looks like the header of a table; else empty."""
        return list(self.dialect.columns) if self.dialect is not None else []

    @cached_property
    def dialect(self) -> Dialect | None:
        """The dialect of the table; None if the lines are not those of a table."""
        return dialect_of(self.lines)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The JSON objects in the first lines, one per line; empty if the first line is not a JSON object."""
        parsed = []
        for line in self.lines[:200]:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(value, dict):
                break
            parsed.append(value)
        return parsed

    def has(self, *names: str) -> bool:
        """Whether the header of the table contains all these columns."""
        return set(names) <= set(self.columns)


@dataclass(frozen=True)
class Format:
    """One log format. ``title``: a description. ``recognises(sample)``: whether a file has this format.
    ``read(path, options)``: the logs in a file, one per run. ``marks``: strings that occur in such files, by which the
    nearest formats of an unknown file are chosen."""

    name: str
    title: str
    recognises: Callable[[Sample], bool]
    read: Callable[[Path, Options], list[Log]]
    marks: Sequence[str] = ()


def open_log(path: Path) -> BinaryIO:
    """Open a log as bytes of UTF-8. Files compressed by gzip are unpacked; UTF-16 (Excel, PowerShell) is converted."""
    if is_gzip(path):
        return gzip.GzipFile(path)  # type: ignore[return-value]
    if is_utf16(path):
        return io.BytesIO(path.read_bytes().decode("utf-16", errors="replace").encode())
    return path.open("rb")


def is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def is_utf16(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in (b"\xff\xfe", b"\xfe\xff")


def _why(error: OSError | EOFError) -> str:
    return getattr(error, "strerror", None) or str(error)


def read_text(path: Path) -> str:
    """The text of a log. Raises UnicodeDecodeError if it is not UTF-8 (or UTF-16 with a byte order mark)."""
    with open_log(path) as file:
        return file.read().decode("utf-8-sig")


def whole_json(path: Path) -> Any:
    """Parse a file that is a single JSON value. Raises LogFormatError if it is not."""
    try:
        return json.loads(read_text(path))
    except (OSError, EOFError) as error:
        raise LogFormatError(f"cannot read {path}: {_why(error)}") from None
    except UnicodeDecodeError:
        raise LogFormatError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise LogFormatError(f"{path} is not JSON: {str(error)[:120]}") from None
