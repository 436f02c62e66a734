"""Tables in LaTeX. They need ``\\usepackage{booktabs}`` in the preamble."""

from __future__ import annotations

from collections.abc import Sequence

_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip


def escape(value: str) -> str:
    """Escape text so that it contains no LaTeX commands and no line breaks."""
    return "".join(_ESCAPES.get(character, character) for character in " ".join(value.split()))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, align: str, caption: str, label: str) -> str:
    """A floating booktabs table. ``align`` has one letter per column; caption, titles and cells are escaped."""
    assert all(len(row) == len(titles) == len(align) for row in rows)
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}",
        r"\toprule",
        _row(titles),
        r"\midrule",
        *map(_row, rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(_minus(escape(cell)) for cell in cells) + r" \\"


def _minus(cell: str) -> str:
    """Typeset the signs of numbers as a minus, not a hyphen."""
    words = cell.split(" ")
    return " ".join(f"${w[0]}${w[1:]}" if w[:1] in "+-" and w[1:2].isdigit() else w for w in words)
