"""Claims about the lag pooled over the runs of one setting, decided by its interval from resampling runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stabilitylab.comparison.decisions import decide_interval
from stabilitylab.comparison.pooled import PooledLag

POOLED = "pooled_lag"
"""The metric of such a claim, and the column of ``runs.csv`` with the median, which is the same for all runs of a
setting."""
LEVEL_OF_CHANCE = 0.05


def pooled_columns(lag: PooledLag | None) -> dict[str, Any]:
    """The columns of ``runs.csv`` with the pooled lag of a run's setting."""
    low, high = (lag.ci95 if lag is not None else None) or (None, None)
    return {
        POOLED: lag.median_iterations if lag else None,
        f"{POOLED}_low": low,
        f"{POOLED}_high": high,
        f"{POOLED}_p": lag.p_value if lag else None,
        f"{POOLED}_matched": lag.num_matched if lag else 0,
        f"{POOLED}_runs": lag.num_runs if lag else 0,
        f"{POOLED}_verdict": lag.verdict if lag else "",
    }


def decide_pooled(
    rows: Sequence[Mapping[str, Any]], direction: str, smallest: float
) -> tuple[str, str, float | None, tuple[float, float] | None]:
    """Verdict, reason, median and interval of a claim about ``rows``, the runs of one setting."""
    told = {tuple(_text(row.get(key)) for key in (POOLED, f"{POOLED}_low", f"{POOLED}_high")) for row in rows}
    if not told:
        return "inconclusive", "no run of this group is finished", None, None
    if len(told) > 1:
        return "inconclusive", "the runs have several settings; select one with `where`", None, None
    median, low, high = next(iter(told))
    row = rows[0]
    if not low or not high:
        few = f"{_text(row.get(f'{POOLED}_matched'))} matches in {_text(row.get(f'{POOLED}_runs'))} runs"
        return "inconclusive", f"{few} are too few for a pooled lag", None, None
    interval = (float(low), float(high))
    chance = float(_text(row.get(f"{POOLED}_p")) or 1)
    if chance >= LEVEL_OF_CHANCE:
        return "inconclusive", f"as many spikes match by chance (p = {chance:.2g})", float(median), interval
    verdict, reason = decide_interval(interval, direction, smallest)
    return verdict, reason, float(median), interval


def _text(value: Any) -> str:
    return "" if value is None else str(value)
