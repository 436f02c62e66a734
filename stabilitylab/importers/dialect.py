"""The dialect of a text table: delimiter, header, decimal mark, encoding."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

BLANKS = " "
"""The delimiter of a table whose columns are separated by runs of spaces."""

_DELIMITERS = ",\t;|"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_COMMA_DECIMAL = re.compile(r"[-+]?(?:\d{1,3}(?:\.\d{3})+|\d+),\d+(?:[eE][-+]?\d+)?")
_COMMA_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?")
_POINT_DECIMAL = re.compile(r"[-+]?\d*\.\d+(?:[eE][-+]?\d+)?")
_POINT_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(?:\.\d{3})+")
_UNIT = re.compile(r"\s*\[(?!\d+\])[^\]]*\]$|\s+\((?!\d+\))[^)]*\)$")
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class Dialect:
    """``columns``: the cells of the header. ``header``: its line. ``decimal``: the decimal mark."""

    delimiter: str
    columns: tuple[str, ...]
    header: str
    decimal: str = "."


def dialect_of(lines: Sequence[str]) -> Dialect | None:
    """The dialect of a table that begins with these non-blank lines; None if they are not a table.

    Excel's ``sep=;`` and comments (``# ...``) may precede the header. A header that is itself a comment, as numpy
    writes it, is recognised by the row of numbers below it.

    >>> dialect_of(["# host: a", "step;loss", "0;1,5"])
    Dialect(delimiter=';', columns=('step', 'loss'), header='step;loss', decimal=',')
    """
    start = 1 if lines and re.fullmatch(r"sep=.", lines[0].strip(), re.IGNORECASE) else 0
    while start < len(lines) and lines[start].startswith("#"):
        start += 1
    if start == len(lines):
        return None
    header = lines[start]
    below = [line for line in lines[start + 1 :] if line != header]
    delimiter = _delimiter(header, below)
    if start and lines[start - 1].startswith("#") and _all_numbers(cells_of(header, delimiter)):
        below, count = [header, *below], len(cells_of(header, delimiter))
        header = lines[start - 1]
        delimiter = _delimiter(header[1:], below)
        if len(cells_of(header[1:], delimiter)) != count:
            return None
    named = header.removeprefix("#")
    if named.lstrip().startswith(("{", "[")):
        return None
    if _repeats(named, below[:10]):
        return None
    columns = tuple(cell.strip() for cell in cells_of(named, delimiter))
    return Dialect(delimiter, columns, header, _decimal(below, delimiter))


def _delimiter(header: str, below: Sequence[str]) -> str:
    """Comma, tab, semicolon or bar, whichever is most frequent in the header; blanks if there is none of them."""
    delimiter = max(_DELIMITERS, key=header.count)
    if delimiter in header and not (delimiter == "|" and _aligned(header, below)):
        return delimiter
    return BLANKS if _aligned(header, below) else ","


def cells_of(line: str, delimiter: str) -> list[str]:
    return line.split() if delimiter == BLANKS else next(csv.reader([line], delimiter=delimiter), [])


def without_units(columns: Sequence[str], keep: Sequence[str | None] = ()) -> list[str]:
    """Column names without a trailing unit (``step [#]``, ``lr (1/step)``), unless two would then be the same."""
    plain = [column if column in keep else _UNIT.sub("", column) or column for column in columns]
    return plain if len(set(plain)) == len(set(columns)) else list(columns)


def number_sql(text: str, decimal: str) -> str:
    """SQL of the number in a cell: DOUBLE, or NULL if it is not one. Separators of thousands and a percent sign are
    removed. Other cells than plain numbers are rare, so the expressions for them hardly ever run."""
    bare = f"rtrim({text}, ' %')"
    if decimal == ",":
        other = f"regexp_full_match({bare}, '{_COMMA_DECIMAL.pattern}|{_POINT_THOUSANDS.pattern}')"
        converted = f"replace(replace({bare}, '.', ''), ',', '.')"
        return f"TRY_CAST(CASE WHEN {other} THEN {converted} ELSE {bare} END AS DOUBLE)"
    thousands = f"regexp_full_match({bare}, '{_COMMA_THOUSANDS.pattern}')"
    percent = f"regexp_full_match({text}, '{_NUMBER} ?%')"
    cleaned = f"CASE WHEN {thousands} OR {percent} THEN replace({bare}, ',', '') END"
    return f"coalesce(TRY_CAST({text} AS DOUBLE), TRY_CAST({cleaned} AS DOUBLE))"


def reads_as_number(cell: str) -> bool:
    """Whether `number_sql` reads a cell as a number in some dialect."""
    cell = cell.strip().rstrip(" %")
    try:
        float(cell)
    except ValueError:
        return any(kind.fullmatch(cell) for kind in (_COMMA_DECIMAL, _COMMA_THOUSANDS, _POINT_THOUSANDS))
    return True


def _all_numbers(cells: Sequence[str]) -> bool:
    return bool(cells) and all(reads_as_number(cell) for cell in cells)


def _aligned(header: str, below: Sequence[str]) -> bool:
    """Whether the header and the lines below it have the same number of words, which below are numbers."""
    count = len(header.split())
    rows = [line.split() for line in below[:20]]
    return count > 1 and len(rows) > 1 and all(len(row) == count and _all_numbers(row) for row in rows)


def _repeats(header: str, below: Sequence[str]) -> bool:
    """Whether the lines below repeat the words of the first line, as those of a text log do."""
    words = {word.lower() for word in _WORD.findall(header)}
    again = {word.lower() for line in below for word in _WORD.findall(line)}
    return len(words) > 1 and len(words & again) > 0.5 * len(words)


def _decimal(below: Sequence[str], delimiter: str) -> str:
    """The decimal mark. ``1,234`` is 1234 in a table that is delimited by commas, and 1.234 in others."""
    cells = [
        cell.strip().rstrip(" %")
        for line in below
        if "," in line and (delimiter != "," or '"' in line)
        for cell in cells_of(line, delimiter)
    ]
    if any(_POINT_DECIMAL.fullmatch(cell) and not _POINT_THOUSANDS.fullmatch(cell) for cell in cells):
        return "."
    commas = [cell for cell in cells if _COMMA_DECIMAL.fullmatch(cell)]
    if delimiter == ",":
        commas = [cell for cell in commas if not _COMMA_THOUSANDS.fullmatch(cell)]
    return "," if commas else "."
