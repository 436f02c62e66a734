"""Escape CSV cells so that a spreadsheet does not run them as formulas."""

from __future__ import annotations

from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def cell(value: Any) -> Any:
    """``value`` for a CSV file. Text that a spreadsheet would interpret as a formula gets a leading apostrophe; numbers
    stay unchanged, also as text."""
    if isinstance(value, str) and value.startswith(_FORMULA) and not _is_number(value):
        return "'" + value
    return value


def cell_sql(column: str) -> str:
    """SQL equivalent of `cell` for a VARCHAR column."""
    column = f'"{column}"'
    starts = " OR ".join(f"starts_with({column}, chr({ord(char)}))" for char in _FORMULA)
    return f"CASE WHEN ({starts}) AND try_cast({column} AS DOUBLE) IS NULL THEN chr(39) || {column} ELSE {column} END"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
