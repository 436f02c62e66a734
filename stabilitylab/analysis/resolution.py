"""The time resolution of a recording: the step between its rows, and which events may fall between them.

If every k-th iteration is recorded, an event may begin at any iteration since the previous row. The lag between two
layers is therefore uncertain by one step in either direction, and a spike shorter than the step may be missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.series import LayerSeries

ROWS = ("sampled", "mean", "bucket")
REGULAR_SHARE = 0.99
"""A series is regular if at least this share of its gaps equals the step."""
MEANS_WIDER = 1.5
"""Extra uncertainty of an onset in rows that are means, where the first row to reach half the height depends on how the
event is spread over the rows."""
CHANGING = 0.2
"""The step is changing if the median step of this share of the recorded time differs between its start and its end."""
WIDTHS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True, slots=True)
class Resolution:
    """The recording step of a run's gradient norms, in iterations.

    ``step``: median gap between rows. ``smallest``, ``largest``: extreme gaps. ``spacing``: ``regular``, ``irregular``,
    ``changing``, or ``unknown`` with fewer than two rows. ``rows``: what a row is: ``sampled``, ``mean``, ``bucket``,
    or ``unknown`` if the log does not say. ``seen``: pairs of a spike's width in iterations and the probability that a
    row falls within it. ``eval_step``: iterations between two evaluations; None with fewer than two.
    ``mostly``: 95% of the rows are at most this many iterations after the previous row.
    """

    step: int
    smallest: int
    largest: int
    spacing: str
    rows: str
    seen: tuple[tuple[int, float], ...] = ()
    eval_step: int | None = None
    mostly: int = 1

    @property
    def open_by(self) -> float:
        """Iterations by which an event may begin before the row that shows it, in 95% of the rows of any layer."""
        if self.mostly <= 1:
            return 0.0
        return self.mostly * (MEANS_WIDER if self.rows == "mean" else 1.0)

    @property
    def every_iteration(self) -> bool:
        return self.step == 1

    def in_words(self) -> str:
        """The resolution as one line of text; empty if every iteration is recorded."""
        if self.spacing == "unknown" or self.mostly <= 1:
            return ""
        every = f"{self.step}" if self.spacing == "regular" else f"{self.smallest} to {self.mostly}"
        spaced = {"regular": "", "irregular": " (irregularly)", "changing": " (the step changes)"}[self.spacing]
        stand = {
            "mean": f"; rows are means, which reduce a spike of one iteration to 1/{self.step} of its height",
            "bucket": "; rows are maxima over buckets of iterations",
            "sampled": "",
            "unknown": "; the log does not say whether rows are single iterations or means",
        }[self.rows]
        odds = [(width, p) for width, p in self.seen if p < 1]
        shown = ", ".join(f"{p:.0%} for width {width}" for width, p in odds[:3])
        missed = f"; shorter spikes may be missed (probability of recording one: {shown})" if odds else ""
        return f"recorded every {every} iterations{spaced}{stand}{missed}; lags below {self.mostly} are not resolvable"


def mostly(gaps: np.ndarray) -> int:
    """The 95th percentile of ``gaps`` (n,) between rows; 1 without any."""
    return max(int(np.percentile(gaps, 95, method="inverted_cdf")), 1) if len(gaps) else 1


def recording_steps(iteration: np.ndarray) -> np.ndarray:
    """(n,) -> (n,): iterations since the previous row; the median for the first row."""
    gaps = np.diff(iteration)
    if len(gaps) == 0:
        return np.ones(len(iteration), dtype=np.int64)
    return np.concatenate([[max(int(np.median(gaps)), 1)], gaps])


def resolution_of(
    layers: Sequence[LayerSeries], *, rows: str = "", evaluations: np.ndarray | None = None
) -> Resolution:
    """The resolution of a run, taken from the layer with the fewest rows.

    ``rows``: as in `RunSeries`. ``evaluations`` (m,): iterations at which the judged metric was evaluated.
    """
    between = np.diff(np.unique(evaluations)) if evaluations is not None else np.array([])
    eval_step = int(np.median(between)) if len(between) else None
    recorded = [layer.iteration for layer in layers if len(layer.iteration) > 1]
    stand = rows if rows in ROWS else "unknown"
    if not recorded:
        return Resolution(1, 1, 1, "unknown", stand, eval_step=eval_step)
    gaps = np.diff(min(recorded, key=len))
    gaps = gaps[gaps > 0]
    if len(gaps) == 0:
        return Resolution(1, 1, 1, "unknown", stand, eval_step=eval_step)
    step = max(int(np.median(gaps)), 1)
    part = CHANGING * float(gaps.sum())
    elapsed = np.cumsum(gaps)
    head = float(np.median(gaps[elapsed <= max(part, gaps[0])]))
    tail = float(np.median(gaps[elapsed > min(elapsed[-1] - part, elapsed[-1] - 1)]))
    if (gaps == step).mean() >= REGULAR_SHARE:
        spacing = "regular"
    else:
        spacing = "changing" if len(gaps) >= 10 and max(head, tail) > 1.5 * min(head, tail) else "irregular"
    if step == 1:
        stand = "sampled"
    widths = [w for w in WIDTHS if w < gaps.max()] if step > 1 or spacing != "regular" else []
    # Means and maxima cover all iterations of a step, so no spike falls between rows.
    whole = stand in ("mean", "bucket")
    seen = tuple((w, 1.0 if whole else float(np.minimum(w, gaps).sum() / gaps.sum())) for w in widths)
    return Resolution(step, int(gaps.min()), int(gaps.max()), spacing, stand, seen, eval_step, mostly(gaps))
