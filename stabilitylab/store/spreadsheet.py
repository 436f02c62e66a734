"""CSV cells that a spreadsheet shows and does not run."""

from __future__ import annotations

from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def cell(value: Any) -> Any:
    """``value`` for a CSV file. Text that a spreadsheet would take for a formula gets a leading apostrophe; numbers,
    also those that are text, stay as they are."""
    if isinstance(value, str) and value.startswith(_FORMULA) and not _is_number(value):
        return "'" + value
    return value


def cell_sql(column: str) -> str:
    """`cell` of a VARCHAR column, in SQL."""
    column = f'"{column}"'
    starts = " OR ".join(f"starts_with({column}, chr({ord(char)}))" for char in _FORMULA)
    return f"CASE WHEN ({starts}) AND try_cast({column} AS DOUBLE) IS NULL THEN chr(39) || {column} ELSE {column} END"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
