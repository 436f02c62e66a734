"""Types of a comparison of runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from stabilitylab.comparison.pooled import PooledLag


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What one run brings to a comparison.

    ``final`` and ``best`` are those of ``metric``, the curve that the run is judged by, as recorded; ``final_knn`` and
    ``best_knn`` those of ``knn_top1``. Rates are per 10,000 iterations. ``spike_score`` is OLMo 2's: the share of
    values of the whole gradient's norm that lie 7 sd above the mean of the last 1,000.
    """

    run: str
    mitigation: str
    seed: int
    base_lr: float
    final_knn: float | None
    best_knn: float | None
    spikes_per_10k: float | None
    dip_area: float | None
    max_dip_depth: float | None
    diverged: bool
    spike_score: float | None = None
    metric: str = "knn_top1"
    goal: str = "max"
    scale: str = "fraction"
    final: float | None = None
    best: float | None = None

    def value(self, column: str) -> float | None:
        """A column of the comparison: a field, or ``final_NAME`` and ``best_NAME`` of the judged metric."""
        which, _, name = column.partition("_")
        if which in ("final", "best") and name not in ("knn", "knn_top1"):
            return getattr(self, which) if name == self.metric else None
        found: float | None = getattr(self, f"{which}_knn" if name == "knn_top1" else column)
        return found


@dataclass(frozen=True, slots=True)
class Effect:
    """Mitigation minus baseline for one metric, over runs paired by seed.

    ``ci95`` and ``p_value`` are None where the number of pairs gives none; ``warning`` then says so. ``verdict`` is
    read off the interval: ``better``, ``worse``, ``no difference shown`` or ``too few seeds``. ``effect_size`` is the
    difference in sd of the pairs' differences, ``detectable`` the least difference that so many seeds show with
    probability 0.8, ``seeds_needed`` the seeds that show the difference seen with that probability.
    """

    mitigation: str
    baseline: str
    metric: str
    baseline_mean: float
    mitigated_mean: float
    difference: float
    ci95: tuple[float, float] | None
    p_value: float | None
    p_holm: float | None
    num_seeds: int
    warning: str = ""
    verdict: str = "too few seeds"
    effect_size: float | None = None
    detectable: float | None = None
    seeds_needed: int | None = None


@dataclass(frozen=True, slots=True)
class LrSensitivity:
    """How much final kNN a mitigation loses, on average over learning rates, against its own best one (after
    arXiv 2309.14322). One value a seed; ``by_lr`` is (base_lr, mean final kNN)."""

    mitigation: str
    mean: float
    ci95: tuple[float, float] | None
    num_seeds: int
    by_lr: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs side by side, and the effect of each mitigation against the baseline. The runs are judged by ``metric``."""

    runs: tuple[RunSummary, ...]
    effects: tuple[Effect, ...]
    baseline: str
    notes: tuple[str, ...] = ()
    lr_sensitivity: tuple[LrSensitivity, ...] = ()
    metric: str = "knn_top1"
    goal: str = "max"
    scale: str = "fraction"
    lags: tuple[PooledLag, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain types; numbers that are not finite stay, for the writer to turn into null."""
        out = asdict(self)
        for row in out["lr_sensitivity"]:
            row["by_lr"] = [{"base_lr": lr, "final_knn": value} for lr, value in row["by_lr"]]
        return out
