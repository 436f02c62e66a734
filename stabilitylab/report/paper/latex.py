"""Tables as LaTeX, for the preamble's ``\\usepackage{booktabs}``."""

from __future__ import annotations

from collections.abc import Sequence

_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip


def escape(value: str) -> str:
    """A name as text: no command in it runs, no line of it ends the table."""
    return "".join(_ESCAPES.get(character, character) for character in " ".join(value.split()))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, align: str, caption: str, label: str) -> str:
    """A floating booktabs table. ``align`` has one letter a column; titles and cells are escaped here."""
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
    """A number's sign is a minus, not a hyphen."""
    words = cell.split(" ")
    return " ".join(f"${w[0]}${w[1:]}" if w[:1] in "+-" and w[1:2].isdigit() else w for w in words)
