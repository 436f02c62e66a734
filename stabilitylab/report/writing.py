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


def check_output(output: Path) -> None:
    """Raise ConfigError if the output cannot be written. Call it before a long analysis, not after."""
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"cannot write {output}: choose a file in an existing folder")


def write_report(runs: Sequence[AnalysedRun], comparison: Comparison | None, output: Path) -> Path:
    """Write the HTML report of ``runs``, with their comparison if there are several. Returns ``output``."""
    from stabilitylab.report.html.page import render_report

    check_output(output)
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
