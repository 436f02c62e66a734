"""What a record can show: how far apart its rows lie, and what falls between them.

Of a series recorded every k-th iteration, an event is known to begin after the row before the one that shows it: a lag
between two layers is uncertain by a step on either side, and a spike shorter than the step is seen only by luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.series import LayerSeries

ROWS = ("sampled", "mean", "bucket")
REGULAR_SHARE = 0.99
"""A series is regular where at least this share of its gaps is one step."""
CHANGING = 0.2
"""The step changes where the last fifth of a series has another median step than the first fifth."""
WIDTHS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True, slots=True)
class Resolution:
    """The recording step of a run's gradient norms, in iterations.

    ``step`` is the median over all gaps, ``smallest`` and ``largest`` the extremes. ``spacing``: ``regular``,
    ``irregular``, ``changing``, or ``unknown`` with fewer than two rows. ``rows``: ``sampled``, ``mean``, ``bucket``,
    or ``unknown`` where the log does not say what a row stands for. ``seen``: (width, probability) that a row falls
    within a spike of so many iterations. ``eval_step``: iterations between two evaluations, None without two.
    """

    step: int
    smallest: int
    largest: int
    spacing: str
    rows: str
    seen: tuple[tuple[int, float], ...] = ()
    eval_step: int | None = None

    @property
    def every_iteration(self) -> bool:
        return self.step == 1

    def in_words(self) -> str:
        """One line for people; empty where every iteration is recorded."""
        if self.spacing == "unknown" or self.step <= 1:
            return ""
        spaced = {"regular": "", "irregular": " (irregularly)", "changing": " (the step changes)"}[self.spacing]
        stand = {
            "mean": f"; rows are means, in which a spike of one iteration keeps 1/{self.step} of its height",
            "bucket": "; rows are maxima of buckets",
            "sampled": "",
            "unknown": "; the log does not say whether rows are single iterations or means",
        }[self.rows]
        odds = [(width, p) for width, p in self.seen if p < 1]
        shown = ", ".join(f"{p:.0%} for width {width}" for width, p in odds[:3])
        missed = f"; a spike shorter than that may be missed (probability of seeing one: {shown})" if odds else ""
        return f"recorded every {self.step} iterations{spaced}{stand}{missed}; no lag below {self.step} can be told"


def recording_steps(iteration: np.ndarray) -> np.ndarray:
    """(n,) -> (n,) iterations since the row before; the first row takes the median."""
    gaps = np.diff(iteration)
    if len(gaps) == 0:
        return np.ones(len(iteration), dtype=np.int64)
    return np.concatenate([[max(int(np.median(gaps)), 1)], gaps])


def resolution_of(
    layers: Sequence[LayerSeries], *, rows: str = "", evaluations: np.ndarray | None = None
) -> Resolution:
    """The resolution of a run's layers; of those with the fewest rows where they differ. ``rows`` as `RunSeries` has
    it; ``evaluations`` (m,) iterations of the judged metric."""
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
    part = max(int(CHANGING * len(gaps)), 1)
    head, tail = float(np.median(gaps[:part])), float(np.median(gaps[-part:]))
    if (gaps == step).mean() >= REGULAR_SHARE:
        spacing = "regular"
    else:
        spacing = "changing" if len(gaps) >= 10 and max(head, tail) > 1.5 * min(head, tail) else "irregular"
    if step == 1:
        stand = "sampled"
    widths = [w for w in WIDTHS if w < gaps.max()] if step > 1 or spacing != "regular" else []
    # Means and maxima stand for all iterations of the step: none falls between them.
    whole = stand in ("mean", "bucket")
    seen = tuple((w, 1.0 if whole else float(np.minimum(w, gaps).sum() / gaps.sum())) for w in widths)
    return Resolution(step, int(gaps.min()), int(gaps.max()), spacing, stand, seen, eval_step)
