"""What reaches a terminal: text, never the control characters that a name or a message may hold."""

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

# C0 but tab and newline, DEL, C1, and the characters that turn the direction of what follows.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""``text`` with control characters written out, as ``\x1b``."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class SafeStream(TextIOBase):
    """A text stream that writes control characters out, and what it cannot encode with a backslash. It has no
    ``buffer``, so that nothing goes around it."""

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
        """Leaves the stream underneath open: it is not ours, and Python closes what is garbage collected."""


@cache
def _console_class() -> type[Console]:
    from rich.console import Console
    from rich.segment import Segment

    class SafeConsole(Console):
        """rich's console: its own colours and cursor movements pass, those in the text that it shows do not."""

        def _render_buffer(self, buffer: Iterable[Segment]) -> str:
            return super()._render_buffer(
                segment if segment.control else Segment(visible(segment.text), segment.style) for segment in buffer
            )

    return SafeConsole


def console(*, stderr: bool = False, **options: Any) -> Console:
    """rich's console on standard output, or on standard error."""
    stream: Any = sys.stderr if stderr else sys.stdout
    file = stream.stream if isinstance(stream, SafeStream) else None
    return _console_class()(file=file, stderr=stderr, **options)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> None:
    """Print a table without lines. Columns whose title is in ``right`` are right-aligned. Cells are folded to the width
    of a terminal; nothing is cut in a pipe or a file."""
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
    """From here on, nothing that is printed reaches the terminal as a command."""
    sys.stdout, sys.stderr = SafeStream(sys.stdout), SafeStream(sys.stderr)
