"""Named series, the common representation that every format is read into before it is interpreted."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stabilitylab.errors import LogFormatError

MAX_ITERATION = 2**31 - 1
"""The largest step that fits the INTEGER column of the store."""


@dataclass(frozen=True)
class Note:
    """A remark about the import. It is printed and stored as an event of this kind."""

    kind: str
    text: str
    iteration: int = 0


@dataclass
class Series:
    """One logged quantity.

    ``step`` (n,) int64 and ``value`` (n,) float64: in the order of the log. ``row`` (n,) int64: position in the log, on
    a scale shared by all series, so that a restart found in one series can be applied to the others. ``low``, ``high``:
    smallest and largest value of a bucket, if the export contains them. ``approximate``: whether the values were
    computed from the bins of a histogram.
    """

    name: str
    step: np.ndarray
    value: np.ndarray
    row: np.ndarray
    num_samples: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    approximate: bool = False

    def __len__(self) -> int:
        return len(self.step)

    def take(self, chosen: np.ndarray) -> Series:
        """The points selected by ``chosen``, a mask or indices."""
        optional = {
            name: None if (values := getattr(self, name)) is None else values[chosen]
            for name in ("num_samples", "low", "high")
        }
        return Series(
            self.name,
            self.step[chosen],
            self.value[chosen],
            self.row[chosen],
            approximate=self.approximate,
            **optional,
        )


@dataclass
class Log:
    """One run of a log.

    ``format``: name of the importer. ``run``: name of the run in the log, if any. ``restarts``: restarts as (row,
    step): everything logged before ``row`` at ``step`` or later was superseded. ``counts_from``: the step that the log
    assigns to the first update. ``may_restart``: whether decreasing steps may be restarts. ``axis``: the unit of a
    step, if not iterations. ``layers``: series -> layer, if the format contains it; ``maxima``: the same for largest
    entries; ``depths``: layer -> depth. ``rows``: what a row is, if known: ``sampled`` (one iteration), ``mean`` or
    ``bucket``.
    """

    format: str
    path: Path
    run: str = ""
    series: dict[str, Series] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    restarts: list[tuple[int, int]] = field(default_factory=list)
    counts_from: int = 0
    may_restart: bool = True
    axis: str = ""
    rows: str = ""
    depths: dict[str, int] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    maxima: dict[str, str] = field(default_factory=dict)

    def note(self, kind: str, text: str, iteration: int = 0) -> None:
        self.notes.append(Note(kind, text, iteration))


class Refused:
    """Counts rows that cannot be read and remembers the first one. With ``strict``, the first one raises an error."""

    def __init__(self, path: Path, strict: bool) -> None:
        self._path, self._strict = path, strict
        self.count = 0
        self._first = ""

    def add(self, line: int | str, why: str, count: int = 1) -> None:
        where = f"line {line}" if isinstance(line, int) else line
        if self._strict:
            raise LogFormatError(f"{self._path}, {where}: {why}; not allowed with --strict")
        if not self.count:
            self._first = f"{where}: {why}"
        self.count += count

    def add_note(self, log: Log) -> None:
        if self.count:
            rows = "1 row was refused" if self.count == 1 else f"{self.count:,} rows were refused, the first"
            log.note("refused_rows", f"{rows} ({self._first})")


class Points:
    """Collects points one at a time and converts them to series. The reader increments ``row`` once per record."""

    def __init__(self) -> None:
        self.row = 0
        self._steps: dict[str, array[int]] = {}
        self._values: dict[str, array[float]] = {}
        self._rows: dict[str, array[int]] = {}
        self._approximate: set[str] = set()

    def add(self, name: str, step: int, value: float, approximate: bool = False) -> None:
        if name not in self._steps:
            self._steps[name], self._values[name], self._rows[name] = array("q"), array("d"), array("q")
        self._steps[name].append(step)
        self._values[name].append(value)
        self._rows[name].append(self.row)
        if approximate:
            self._approximate.add(name)

    def names(self) -> set[str]:
        return set(self._steps)

    def series(self) -> dict[str, Series]:
        return {
            name: Series(
                name,
                np.array(self._steps[name], np.int64),
                np.array(self._values[name], np.float64),
                np.array(self._rows[name], np.int64),
                approximate=name in self._approximate,
            )
            for name in self._steps
        }


def whole_step(value: Any) -> int | None:
    """A step as an integer from 0 to MAX_ITERATION; None for other values (text, fractions, negative numbers)."""
    number = plain_number(value)
    if number is None or not 0 <= number <= MAX_ITERATION or number != int(number):
        return None
    return int(number)


def plain_number(value: Any) -> float | None:
    """A value as a number, including NaN and infinity written as words; None for other values."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or value == "":
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def why_no_step(value: Any) -> str:
    """Why `whole_step` rejected a value, for a message."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "it has no step"
    return f"step {str(value)[:40]!r} is not a whole number from 0 to {MAX_ITERATION}"


def shortened(names: Iterable[str], most: int = 3) -> str:
    """Up to ``most`` names, followed by the number of further names.

    >>> shortened(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
