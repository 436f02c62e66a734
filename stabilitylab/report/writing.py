"""Write an output file of a command: atomically, through links, and to pipes and devices."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stabilitylab.errors import ConfigError
from stabilitylab.unfinished import remove_unfinished

if TYPE_CHECKING:
    from stabilitylab.comparison.results import Comparison
    from stabilitylab.run.analysed import AnalysedRun


_KINDS = {
    "html": ("an HTML page", (b"<!doctype html", b"<html")),
    "pdf": ("a PDF file", (b"%PDF",)),
    "png": ("a PNG image", (b"\x89PNG",)),
    "svg": ("an SVG image", (b"<?xml", b"<svg")),
    "tex": ("a LaTeX table", (b"\\begin{table}", b"% \\usepackage{booktabs}")),
}
"""What commands write: a description, and how such files begin."""


def check_output(output: Path, kind: str) -> None:
    """Raise ConfigError if the output cannot be written, or if it would replace a file that is not of the same kind,
    such as the database of a run. Call it before a long analysis, not after.

    ``kind``: html, pdf, png, svg or tex. An earlier output may be replaced.
    """
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"cannot write {output}: choose a file in an existing folder")
    if not output.is_file():
        return
    what, starts = _KINDS[kind]
    try:
        with output.open("rb") as file:
            head = file.read(64).lstrip().lower()
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from None
    if head and not head.startswith(tuple(start.lower() for start in starts)):
        raise ConfigError(f"{output} exists and is not {what}; choose another file")


def write_report(runs: Sequence[AnalysedRun], comparison: Comparison | None, output: Path) -> Path:
    """Write the HTML report of ``runs``, with their comparison if there are several. Returns ``output``."""
    from stabilitylab.report.html.page import render_report

    check_output(output, "html")
    write_file(output, render_report(runs, comparison).encode())
    return output


def write_file(path: Path, data: bytes) -> None:
    """Like `write_atomically`, but raises ConfigError with the reason."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``. A regular file is replaced atomically and keeps its permissions. The target of a link
    is written and the link is kept. A pipe, a terminal or another device is written to directly. Raises OSError."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        with target.open("wb") as out:
            out.write(data)
        return
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o7777)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    remove_unfinished(target.parent, re.compile(re.escape(f".{target.name[:100]}.") + r"(?P<pid>[0-9]+)\.tmp"))
