"""What an importer of a format is, and what it is shown of a file before it reads it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stabilitylab.errors import LogFormatError
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
                with path.open("rb") as file:
                    self.raw = file.read(_HEAD_BYTES)
            except OSError as error:
                raise LogFormatError(f"cannot read {path}: {error.strerror}") from None

    @cached_property
    def head(self) -> str:
        raw = self.raw.removeprefix(b"\xef\xbb\xbf")
        return "" if b"\0" in raw[:4096] else raw.decode("utf-8", errors="replace")

    @cached_property
    def lines(self) -> list[str]:
        """Whole lines of the head that are not blank."""
        lines = self.head.splitlines()
        if len(self.raw) == _HEAD_BYTES:
            lines = lines[:-1]
        return [line for line in lines if line.strip()]

    @cached_property
    def columns(self) -> list[str]:
        """The cells of the first line, if it reads like the header of a table."""
        if not self.lines or self.lines[0].lstrip().startswith(("{", "[")):
            return []
        line = self.lines[0]
        cells = next(csv.reader([line], delimiter=delimiter_of(line)), [])
        return [cell.strip() for cell in cells]

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The JSON objects among the first lines, one a line; empty if the first line is none."""
        found = []
        for line in self.lines[:200]:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(value, dict):
                break
            found.append(value)
        return found

    def has(self, *names: str) -> bool:
        """Whether a table's header holds all these columns."""
        return set(names) <= set(self.columns)


@dataclass(frozen=True)
class Format:
    """One kind of log. ``title``: what it is, in words. ``recognises``: whether a file is one. ``read``: the runs in
    it. ``marks``: words that such files hold, by which the nearest formats of an unknown file are found."""

    name: str
    title: str
    recognises: Callable[[Sample], bool]
    read: Callable[[Path, Options], list[Log]]
    marks: Sequence[str] = ()


def delimiter_of(header: str) -> str:
    """Comma, tab or semicolon, whichever the header has most of."""
    return max(",\t;", key=header.count)


def whole_json(path: Path) -> Any:
    """A file that is one JSON value. LogFormatError if it is not."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise LogFormatError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LogFormatError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise LogFormatError(f"{path} is not JSON: {str(error)[:120]}") from None
