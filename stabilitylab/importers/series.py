"""Named series: what every format is read into before anything is decided about it."""

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
"""The largest step that the store's INTEGER holds."""


@dataclass(frozen=True)
class Note:
    """One thing that a reader of the run should know. It is printed and kept as an event of this kind."""

    kind: str
    text: str
    iteration: int = 0


@dataclass
class Series:
    """One logged quantity.

    ``step`` int64 (n,) and ``value`` float64 (n,), in the order of the log. ``row`` int64 (n,): the position in the
    log, shared by all series of a log, so that a restart found in one series can be applied to the others. ``low`` and
    ``high``: the smallest and the largest value of a bucket, where an export holds them. ``approximate``: the values
    were computed from a histogram's bins.
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
        """The points that ``chosen`` (a mask or indices) selects."""
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
    """One run of somebody's log.

    ``format``: the importer's name. ``run``: the run's name in the log, if it has one. ``restarts``: marks of restarts
    as (row, step): everything logged before ``row`` at ``step`` or later was superseded. ``counts_from``: the number
    that the log gives its first update. ``may_restart``: whether steps that fall
    back are looked at as restarts. ``axis``: what a step is, if it is no iteration. ``layers``: series -> layer,
    where the format says it; ``maxima`` likewise for largest entries; ``depths``: layer -> depth. ``rows``: what a row
    stands for, where the log says it: ``sampled`` (one iteration), ``mean`` or ``bucket``.
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
    """Rows that cannot be read: counted, the first one named; an error at once with ``strict``."""

    def __init__(self, path: Path, strict: bool) -> None:
        self._path, self._strict = path, strict
        self.count = 0
        self._first = ""

    def add(self, line: int | str, why: str, count: int = 1) -> None:
        where = f"line {line}" if isinstance(line, int) else line
        if self._strict:
            raise LogFormatError(f"{self._path}, {where}: {why}; --strict refuses it")
        if not self.count:
            self._first = f"{where}: {why}"
        self.count += count

    def tell(self, log: Log) -> None:
        if self.count:
            rows = "1 row was refused" if self.count == 1 else f"{self.count:,} rows were refused, the first"
            log.note("refused_rows", f"{rows} ({self._first})")


class Points:
    """Collects points one at a time and turns them into series. ``row`` is raised by the reader, once a record."""

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
    """A step as an integer from 0 to MAX_ITERATION; None for anything else (text, fractions, negative numbers)."""
    number = plain_number(value)
    if number is None or not 0 <= number <= MAX_ITERATION or number != int(number):
        return None
    return int(number)


def plain_number(value: Any) -> float | None:
    """A number; NaN and infinity written as words count. None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or value == "":
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def why_no_step(value: Any) -> str:
    """Why ``whole_step`` refused a value, for a message."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "it has no step"
    return f"step {str(value)[:40]!r} is not a whole number from 0 to {MAX_ITERATION}"


def shortened(names: Iterable[str], most: int = 3) -> str:
    """Up to ``most`` names, then how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
