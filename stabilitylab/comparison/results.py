"""Result types of a comparison of runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from stabilitylab.comparison.pooled import PooledLag


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The summary of one run in a comparison.

    ``final``, ``best``: values of ``metric``, by which the run is judged, as recorded. ``final_knn``, ``best_knn``:
    values of ``knn_top1``. Rates are per 10,000 iterations. ``spike_score``: that of OLMo 2, the share of values of the
    global gradient norm that are at least 7 sd above the mean of the last 1,000.
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
        """The value of a column: a field, or ``final_NAME`` or ``best_NAME`` of the judged metric."""
        which, _, name = column.partition("_")
        if which in ("final", "best") and name not in ("knn", "knn_top1"):
            return getattr(self, which) if name == self.metric else None
        number: float | None = getattr(self, f"{which}_knn" if name == "knn_top1" else column)
        return number


@dataclass(frozen=True, slots=True)
class Effect:
    """The difference mitigation minus baseline of one metric, over runs paired by seed.

    ``ci95``, ``p_value``: None with too few pairs, as ``warning`` then says. ``verdict``: decided by the interval:
    ``better``, ``worse``, ``no difference shown`` or ``too few seeds``. ``effect_size``: the difference in sd of the
    pairwise differences. ``detectable``: smallest difference that this number of seeds detects with probability 0.8.
    ``seeds_needed``: number of seeds that detect the observed difference with probability 0.8.
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
    """How much final kNN accuracy a mitigation loses, averaged over learning rates, relative to its best learning rate
    (after arXiv 2309.14322). One value per seed. ``by_lr``: (base_lr, mean final kNN)."""

    mitigation: str
    mean: float
    ci95: tuple[float, float] | None
    num_seeds: int
    by_lr: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The summaries of the runs, and the effect of each mitigation relative to the baseline. ``metric``: by which the
    runs are judged."""

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
        """Plain types. Non-finite numbers are kept; the JSON writer turns them into null."""
        out = asdict(self)
        for row in out["lr_sensitivity"]:
            row["by_lr"] = [{"base_lr": lr, "final_knn": value} for lr, value in row["by_lr"]]
        return out
