"""Output to a terminal, with the control characters in names and messages escaped."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from io import TextIOBase
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment

# C0 except tab and newline, DEL, C1, and characters that change the text direction.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""``text`` with control characters escaped, such as ``\x1b``."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class SafeStream(TextIOBase):
    """A text stream that escapes control characters and characters that it cannot encode. It has no ``buffer``, so that
    nothing can bypass it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.stream.errors

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError("a text stream takes text")
        self.stream.write(visible(text))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Leave the underlying stream open: this object does not own it, and Python closes garbage-collected files."""


@cache
def _console_class() -> type[Console]:
    from rich.console import Console
    from rich.segment import Segment

    class SafeConsole(Console):
        """rich's console, which keeps its own colours and cursor movements but escapes those in displayed text."""

        def _render_buffer(self, buffer: Iterable[Segment]) -> str:
            return super()._render_buffer(
                segment if segment.control else Segment(visible(segment.text), segment.style) for segment in buffer
            )

    return SafeConsole


def console(*, stderr: bool = False, **options: Any) -> Console:
    """A rich console on standard output or standard error."""
    stream: Any = sys.stderr if stderr else sys.stdout
    file = stream.stream if isinstance(stream, SafeStream) else None
    return _console_class()(file=file, stderr=stderr, **options)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> None:
    """Print a table without borders. Columns whose title is in ``right`` are right-aligned. Cells are wrapped to the
    width of a terminal; output to a pipe or a file is not truncated."""
    out = console()
    if out.is_terminal:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for title in titles:
            table.add_column(title, overflow="fold", justify="right" if title in right else "left")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        out.print(table)
        return
    lines = [[" ".join(visible(cell).split("\n")) for cell in row] for row in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ends = [title in right for title in titles]
    for line in lines:
        cells = zip(line, widths, ends, strict=True)
        print("  ".join(cell.rjust(width) if end else cell.ljust(width) for cell, width, end in cells).rstrip())


def protect() -> None:
    """Replace the standard streams with `SafeStream`, so that printed text cannot control the terminal."""
    sys.stdout, sys.stderr = SafeStream(sys.stdout), SafeStream(sys.stderr)
