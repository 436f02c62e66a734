"""Removal of rows that a restart superseded, and of steps that were logged twice.

A run that crashed at step 600 and was resumed from a checkpoint at 500 logs 500 to 599 again. Of two values at one
step, the later one is valid. Old values beyond the last step of the resumed run are invalid too. Both must be removed,
or the seam would look like a spike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stabilitylab.importers.series import Log, Series

SHORTEST_ATTEMPT = 3
"""Attempts have at least this many steps on average. Shorter ones are unordered rows, not restarts."""
MOST_ATTEMPTS = 100
"""If the steps of one series decrease more often than this, the decreases are not restarts either."""


@dataclass(frozen=True)
class _Cut:
    """Everything logged before ``row`` at ``step`` or later was superseded."""

    row: int
    step: int


def drop_superseded(log: Log) -> None:
    """Drop superseded rows and all but the last value of repeated steps, and sort each series by step. Adds a note
    about dropped rows to the log."""
    cuts = [_Cut(row, step) for row, step in log.restarts]
    if log.may_restart:
        cuts += _confirmed(log)
    dropped: dict[str, tuple[int, int]] = {}
    repeated: dict[str, int] = {}
    for name, series in log.series.items():
        stale = _superseded(series, [cut for cut in cuts if _applies(series, cut)])
        last = series.step[~stale]
        again = int(np.isin(series.step[stale], last).sum())
        if stale.any():
            dropped[name] = (again, int(stale.sum()) - again)
            series = series.take(~stale)
        series, twice = _last_of_each_step(series)
        if twice and name.rpartition("/")[2] != "epoch":
            repeated[name] = twice
        log.series[name] = series
    _add_notes(log, cuts, dropped, repeated)


def _confirmed(log: Log) -> list[_Cut]:
    """Restarts that the series agree on: most series that continue after the cut go back at it."""
    falls = {cut for series in log.series.values() for cut in _own_cuts(series)}
    if not falls:
        return []
    rows = np.concatenate([series.row for series in log.series.values()])
    steps = np.concatenate([series.step for series in log.series.values()])
    order = np.argsort(rows, kind="stable")
    rows, steps = rows[order], steps[order]
    cuts = {_beginning(cut, rows, steps) for cut in falls}
    return [cut for cut in cuts if sum(_vote(series, cut) for series in log.series.values()) > 0]


def _beginning(cut: _Cut, rows: np.ndarray, steps: np.ndarray) -> _Cut:
    """The cut, moved to the first row of its step: other series may log that step a few rows earlier."""
    place = int(np.searchsorted(rows, cut.row))
    while place > 0 and steps[place - 1] == cut.step:
        place -= 1
    return _Cut(int(rows[place]), cut.step)


def _own_cuts(series: Series) -> list[_Cut]:
    """Where the steps of one series decrease, if this looks like restarts and not like unordered rows."""
    back = np.flatnonzero(np.diff(series.step) < 0) + 1
    if not 0 < len(back) <= MOST_ATTEMPTS or len(series) / (len(back) + 1) < SHORTEST_ATTEMPT:
        return []
    cuts = []
    for index, end in zip(back, [*back[1:], len(series)], strict=True):
        stale = series.step[:index][series.step[:index] >= series.step[index]]
        # A few rows that come too early are not an attempt: a summary that is logged at step 0 in the end, or a row
        # of which no step is logged again.
        if end - index < SHORTEST_ATTEMPT <= len(stale) // 10:
            continue
        if len(stale) >= SHORTEST_ATTEMPT or np.isin(stale, series.step[index:end]).any():
            cuts.append(_Cut(int(series.row[index]), int(series.step[index])))
    return cuts


def _vote(series: Series, cut: _Cut) -> int:
    """1 if the series goes back at the cut, -1 if it continues past it, 0 if neither can be determined."""
    before, after = series.step[series.row < cut.row], series.step[series.row >= cut.row]
    if len(before) == 0 or len(after) == 0 or before.max() < cut.step:
        return 0
    return 1 if after[0] <= before.max() else -1


def _applies(series: Series, cut: _Cut) -> bool:
    return _vote(series, cut) >= 0


def _superseded(series: Series, cuts: list[_Cut]) -> np.ndarray:
    stale = np.zeros(len(series), dtype=bool)
    for cut in cuts:
        stale |= (series.row < cut.row) & (series.step >= cut.step)
    return stale


def _last_of_each_step(series: Series) -> tuple[Series, int]:
    """The series sorted by step with the last value of each step, and the number of dropped values."""
    if len(series) < 2 or bool((np.diff(series.step) > 0).all()):
        return series, 0
    series = series.take(np.lexsort((series.row, series.step)))
    last = np.append(series.step[1:] != series.step[:-1], True)
    return series.take(last), int((~last).sum())


def _add_notes(log: Log, cuts: list[_Cut], dropped: dict[str, tuple[int, int]], repeated: dict[str, int]) -> None:
    if dropped:
        rows = sum(again + beyond for again, beyond in dropped.values())
        name = max(dropped, key=lambda series: sum(dropped[series]))
        again, beyond = dropped[name]
        steps = sorted({cut.step for cut in cuts})
        shown = ", ".join(map(str, steps[:5])) + (f" and {len(steps) - 5} more" if len(steps) > 5 else "")
        log.note(
            "superseded",
            f"restarted at step {shown}: {again} + {beyond} superseded rows of {name} were dropped ({again} logged "
            f"again, {beyond} beyond the end of the record); {rows:,} rows of {len(dropped)} series in all",
            steps[0] if steps else 0,
        )
    if repeated:
        name = max(repeated, key=lambda series: repeated[series])
        log.note(
            "duplicates",
            f"{sum(repeated.values()):,} repeated steps were dropped, keeping the last value: {repeated[name]:,} of "
            + name
            + (f", {len(repeated)} series in all" if len(repeated) > 1 else ""),
        )
