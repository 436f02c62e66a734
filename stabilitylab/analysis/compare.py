"""What a mitigation changes: runs paired by seed and learning rate, against the baseline without it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from stabilitylab.analysis.results import Comparison, Effect, RunAnalysis, RunSeries, RunSummary

METRICS = ("final_knn", "best_knn", "spikes_per_10k", "dip_area", "max_dip_depth")
_MAX_FLIPS = 2**14


def summarize_run(
    series: RunSeries, analysis: RunAnalysis, *, mitigation: str, seed: int, base_lr: float
) -> RunSummary:
    """One run's line in a comparison. ``final_knn`` is the mean of the last three evaluations."""
    curve = series.evals.get("knn_top1")
    values = curve.value[np.isfinite(curve.value)] if curve is not None else np.empty(0)
    recorded = sum(len(layer.iteration) for layer in series.layers)
    spikes = [s for s in analysis.spikes or () if s.kind == "spike"]
    return RunSummary(
        run=series.run,
        mitigation=mitigation,
        seed=seed,
        base_lr=base_lr,
        final_knn=float(values[-3:].mean()) if len(values) else None,
        best_knn=float(values.max()) if len(values) else None,
        spikes_per_10k=10_000 * len(spikes) / recorded if recorded and analysis.spikes is not None else None,
        dip_area=sum(d.area for d in analysis.dips) if analysis.dips is not None and len(values) else None,
        max_dip_depth=max((d.depth for d in analysis.dips), default=0.0)
        if analysis.dips is not None and len(values)
        else None,
        diverged=any(s.kind == "nonfinite" for s in analysis.spikes or ()),
    )


def compare_runs(summaries: Sequence[RunSummary], baseline: str = "none") -> Comparison:
    """The effect of each mitigation on each metric, with Holm's correction over the mitigations of a metric."""
    names = list(dict.fromkeys(s.mitigation for s in summaries))
    if baseline not in names:
        note = f"no run without a mitigation ({baseline!r}) to compare with"
        return Comparison(tuple(summaries), (), baseline, (note,))
    effects: list[Effect] = []
    notes: list[str] = []
    for metric in METRICS:
        found = []
        for name in names:
            pairs = _pairs(summaries, baseline, name, metric) if name != baseline else []
            if pairs:
                found.append(_effect(baseline, name, metric, pairs))
        effects += _with_holm(found)
    notes += [f"no run of {n} shares seed and learning rate with a run of {baseline}" for n in names
              if n != baseline and not any(e.mitigation == n for e in effects)]  # fmt: skip
    return Comparison(tuple(summaries), tuple(effects), baseline, tuple(notes))


def _pairs(summaries: Sequence[RunSummary], baseline: str, mitigation: str, metric: str) -> list[tuple[float, float]]:
    """(baseline, mitigated) of runs that share seed and learning rate; repeats of one cell are averaged."""
    cells: dict[tuple[int, float], dict[str, list[float]]] = {}
    for s in summaries:
        value = getattr(s, metric)
        if s.mitigation in (baseline, mitigation) and value is not None:
            cells.setdefault((s.seed, s.base_lr), {}).setdefault(s.mitigation, []).append(value)
    return [
        (float(np.mean(cell[baseline])), float(np.mean(cell[mitigation])))
        for cell in cells.values()
        if baseline in cell and mitigation in cell
    ]


def _effect(baseline: str, mitigation: str, metric: str, pairs: list[tuple[float, float]]) -> Effect:
    before, after = np.array(pairs).T
    difference = after - before
    n = len(difference)
    interval, p_value = paired_interval(difference), sign_flip_p(difference)
    warnings = []
    if n < 3:
        warnings.append("a single seed: no interval" if n == 1 else f"only {n} seeds")
    if n > 1 and 2.0 ** (1 - n) > 0.05:
        warnings.append(f"{n} pairs cannot reach p < 0.05")
    return Effect(
        mitigation=mitigation,
        baseline=baseline,
        metric=metric,
        baseline_mean=float(before.mean()),
        mitigated_mean=float(after.mean()),
        difference=float(difference.mean()),
        ci95=interval,
        p_value=p_value,
        p_holm=None,
        num_seeds=n,
        warning="; ".join(warnings),
    )


def paired_interval(difference: np.ndarray) -> tuple[float, float] | None:
    """95% t interval of the mean difference. A bootstrap of 3 to 10 pairs covers far too little; t does not."""
    n = len(difference)
    if n < 2:
        return None
    half = float(stats.t.ppf(0.975, n - 1) * difference.std(ddof=1) / math.sqrt(n))
    return float(difference.mean()) - half, float(difference.mean()) + half


def sign_flip_p(difference: np.ndarray, seed: int = 0) -> float | None:
    """Two-sided permutation p of the mean: each pair's sign flipped, all ways where they can be listed."""
    n = len(difference)
    if n < 2:
        return None
    if 2**n <= _MAX_FLIPS:
        signs = np.array(list(itertools.product((1, -1), repeat=n)))
    else:
        signs = np.random.default_rng(seed).choice((1, -1), (_MAX_FLIPS, n))
        signs[0] = 1
    flipped = np.abs(signs @ difference)
    return float((flipped >= flipped[0] * (1 - 1e-12)).mean())


def _with_holm(effects: list[Effect]) -> list[Effect]:
    tested = sorted((e.p_value, i) for i, e in enumerate(effects) if e.p_value is not None)
    adjusted: dict[int, float] = {}
    running = 0.0
    for rank, (p, index) in enumerate(tested):
        running = max(running, min(1.0, p * (len(tested) - rank)))
        adjusted[index] = running
    return [replace(effect, p_holm=adjusted.get(i)) for i, effect in enumerate(effects)]
