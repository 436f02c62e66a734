"""Comparison of runs: the effect of each mitigation, over runs paired by seed and learning rate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stabilitylab.analysis.detection.rules import spike_score
from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.metrics import curve_of
from stabilitylab.analysis.results import JudgedMetric, LayerSeries, RunAnalysis, RunSeries
from stabilitylab.analysis.series import without_duplicates
from stabilitylab.comparison.paired import (
    MIN_PAIRS_FOR_P,
    detectable_size,
    holm,
    mean_interval,
    seeds_needed,
    sign_flip_p,
)
from stabilitylab.comparison.results import Comparison, Effect, LrSensitivity, RunSummary

METRIC = "knn_top1"
MIN_SEEDS = 3
OTHER_METRICS = ("spikes_per_10k", "dip_area", "max_dip_depth", "diverged", "spike_score")
METRICS = ("final_knn", "best_knn", *OTHER_METRICS)
DIVERGED_SHARE = 0.5
"""A run has diverged if its final kNN accuracy is below this share of its best, or its last gradients are
non-finite."""


def summarize_run(
    series: RunSeries, analysis: RunAnalysis, *, mitigation: str, seed: int, base_lr: float
) -> RunSummary:
    """The summary of one run. Spikes are counted per 10,000 iterations and layer, over trained layers."""
    curve = series.evals.get(METRIC)
    values = curve.value[np.isfinite(curve.value)] if curve is not None else np.array([])
    final_knn = float(values[-1]) if len(values) else None
    best_knn = float(values.max()) if len(values) else None
    judged = analysis.metric if analysis.metric is not None and analysis.metric.judged else JudgedMetric()
    final, best = _ends(series, judged)
    tested = sum(len(layer.iteration) for layer in series.layers if layer.trainable and _judged(layer))
    rate = None if analysis.spikes is None or tested == 0 else 10_000 * len(analysis.spikes) / tested
    dips = analysis.dips
    return RunSummary(
        run=series.run,
        mitigation=mitigation,
        seed=seed,
        base_lr=base_lr,
        final_knn=final_knn,
        best_knn=best_knn,
        spikes_per_10k=rate,
        dip_area=None if dips is None else float(sum(dip.area for dip in dips)),
        max_dip_depth=None if dips is None else max((dip.depth for dip in dips), default=0.0),
        diverged=_diverged(series, final_knn, best_knn),
        spike_score=spike_score(global_norm(series)),
        metric=judged.name,
        goal=judged.goal,
        scale=judged.scale,
        final=final,
        best=best,
    )


def _ends(series: RunSeries, judged: JudgedMetric) -> tuple[float | None, float | None]:
    """The last and the best value of the judged metric, as recorded. For the training loss, the last block mean."""
    curve = curve_of(series, judged)
    values = curve.value[np.isfinite(curve.value)] if curve is not None else np.array([])
    if not len(values):
        return None, None
    return float(values[-1]), float(values.max() if judged.goal == "max" else values.min())


def _judged(layer: LayerSeries) -> bool:
    """Whether the layer has enough norms to detect spikes."""
    norm = np.asarray(layer.grad_norm)
    return int((np.isfinite(norm) & (norm > 0)).sum()) > SpikeSettings().warmup


def global_norm(series: RunSeries) -> np.ndarray:
    """(n,): norm of the whole gradient, from the norms of the layers, at the iterations that all trained layers
    share."""
    layers = [without_duplicates(layer) for layer in series.layers if layer.trainable and len(layer.iteration)]
    if not layers:
        return np.array([])
    shared = layers[0].iteration
    if any(not np.array_equal(layer.iteration, shared) for layer in layers):
        for layer in layers[1:]:
            shared = np.intersect1d(shared, layer.iteration)
    total = np.zeros(len(shared))
    for layer in layers:
        norm = np.asarray(layer.grad_norm, dtype=np.float64)
        if len(norm) > len(shared):
            norm = norm[np.isin(layer.iteration, shared)]
        total += np.square(norm)
    return np.asarray(np.sqrt(total))


def compare_runs(summaries: Sequence[RunSummary], baseline: str = "none", *, by: str = "mitigation") -> Comparison:
    """Compare every mitigation with ``baseline``, per metric. Holm's correction covers the mitigations of a metric.
    ``by``: the name of what ``mitigation`` holds, for the notes."""
    runs = tuple(summaries)
    names = list(dict.fromkeys(run.mitigation for run in runs))
    metric, goal = _shared_metric(runs)
    notes = [f"{run.run}: no {metric} was recorded" for run in runs if run.value(f"final_{metric}") is None]
    notes += [
        f"{run.run} is judged by {run.metric} and the others by {metric}, so its dips are not compared"
        for run in runs
        if run.metric != metric and run.final is not None
    ]
    if baseline not in names:
        known = ", ".join(names) or "no run"
        return Comparison(
            runs, (), baseline, (*notes, f"no run has {by} {baseline!r} to compare with; available: {known}")
        )
    others = [name for name in names if name != baseline]
    if not others:
        notes.append(f"all runs have {by} {baseline!r}, so there is nothing to compare")
    effects: list[Effect] = []
    for column in columns_of(metric):
        of_metric = [_effect(runs, name, baseline, column, goal) for name in others]
        rows = [row for row in of_metric if row is not None]
        corrected = holm([row.p_value for row in rows])
        effects += [replace(row, p_holm=p) for row, p in zip(rows, corrected, strict=True)]
    for name in others:
        if not any(effect.mitigation == name for effect in effects):
            notes.append(
                f"{name!r} is not compared: none of its runs has the seed and base learning rate of a {baseline!r} run"
            )
    sensitivity = _lr_sensitivities(runs, names, notes, metric, goal)  # appends to notes
    return Comparison(runs, tuple(effects), baseline, tuple(notes), sensitivity, metric, goal, scale_of(runs, metric))


def columns_of(metric: str) -> tuple[str, ...]:
    """The columns that are compared for runs judged by ``metric``."""
    name = "knn" if metric == METRIC else metric
    return (f"final_{name}", f"best_{name}", *OTHER_METRICS)


def scale_of(runs: Sequence[RunSummary], metric: str) -> str:
    """The scale of the metric in the runs that have it."""
    return next((run.scale for run in runs if run.metric == metric), "fraction")


def _shared_metric(runs: Sequence[RunSummary]) -> tuple[str, str]:
    """The metric and the goal by which most of the runs are judged."""
    counts = Counter((run.metric, run.goal) for run in runs if run.final is not None or run.final_knn is not None)
    return counts.most_common(1)[0][0] if counts else (METRIC, "max")


def _effect(runs: Sequence[RunSummary], mitigation: str, baseline: str, metric: str, goal: str) -> Effect | None:
    without, treated = _by_pair(runs, baseline, metric), _by_pair(runs, mitigation, metric)
    pairs = sorted(without.keys() & treated.keys())
    if not pairs:
        return None
    # One difference per seed: several learning rates of one seed do not count as several seeds.
    by_seed: dict[int, list[float]] = {}
    for seed, lr in pairs:
        by_seed.setdefault(seed, []).append(treated[seed, lr] - without[seed, lr])
    differences = np.array([np.mean(values) for values in by_seed.values()])
    n = len(differences)
    spread = float(differences.std(ddof=1)) if n >= 2 else 0.0
    varies = spread > 1e-12 * float(np.abs(differences).max(initial=0.0))
    size = float(differences.mean()) / spread if varies else None
    least = detectable_size(n)
    return Effect(
        mitigation=mitigation,
        baseline=baseline,
        metric=metric,
        baseline_mean=float(np.mean([without[pair] for pair in pairs])),
        mitigated_mean=float(np.mean([treated[pair] for pair in pairs])),
        difference=float(differences.mean()),
        ci95=mean_interval(differences),
        p_value=sign_flip_p(differences) if n >= 2 else None,
        p_holm=None,
        num_seeds=n,
        warning=_warning(n, differences),
        verdict=_verdict(metric, goal, differences),
        effect_size=size,
        detectable=None if least is None or not varies else least * spread,
        seeds_needed=None if size is None else seeds_needed(size),
    )


def _verdict(metric: str, goal: str, differences: np.ndarray) -> str:
    """The verdict by the confidence interval, which needs at least three pairs."""
    if len(differences) < MIN_SEEDS:
        return "too few seeds"
    # If all pairs differ by the same amount there is no interval, and the mean decides.
    mean = float(differences.mean())
    low, high = mean_interval(differences) or (mean, mean)
    if low <= 0 <= high:
        return "no difference shown"
    higher = goal == "max" and metric.startswith(("final_", "best_"))
    return "better" if (low > 0) == higher else "worse"


def _lr_sensitivities(
    runs: Sequence[RunSummary], names: Sequence[str], notes: list[str], metric: str, goal: str
) -> tuple[LrSensitivity, ...]:
    """Sensitivity over the learning rates that every mitigation has. Seeds without one of them are skipped."""
    curves = {name: _by_pair(runs, name, columns_of(metric)[0]) for name in names}
    shared = set.intersection(*({lr for _, lr in curve} for curve in curves.values())) if curves else set()
    rates = sorted(shared - {"nan"}, key=float)
    if len(rates) < 2:
        return ()
    sensitivities = []
    for name, curve in curves.items():
        seeds = sorted({seed for seed, _ in curve})
        rows = [[curve[seed, lr] for lr in rates] for seed in seeds if all((seed, lr) in curve for lr in rates)]
        if not rows:
            notes.append(f"no LR sensitivity of {name!r}: no seed has all of the learning rates {', '.join(rates)}")
            continue
        values = np.array(rows)
        best = values.max(axis=1, keepdims=True) if goal == "max" else values.min(axis=1, keepdims=True)
        lost = np.abs(best - values).mean(axis=1)
        by_lr = tuple(zip(map(float, rates), values.mean(axis=0).tolist(), strict=True))
        sensitivities.append(LrSensitivity(name, float(lost.mean()), mean_interval(lost), len(lost), by_lr))
    return tuple(sensitivities)


def _by_pair(runs: Sequence[RunSummary], mitigation: str, metric: str) -> dict[tuple[int, str], float]:
    """Metric by (seed, base_lr), averaged over repeated runs. Learning rates are compared as text."""
    values: dict[tuple[int, str], list[float]] = {}
    for run in runs:
        value = run.value(metric)
        if run.mitigation == mitigation and value is not None and math.isfinite(value):
            values.setdefault((run.seed, f"{run.base_lr:.6g}"), []).append(float(value))
    return {pair: float(np.mean(repeats)) for pair, repeats in values.items()}


def _warning(n: int, differences: np.ndarray) -> str:
    if n == 1:
        return "1 seed: no interval and no p-value; run at least 3"
    if n < 3:
        return f"{n} seeds: the interval is very wide and p cannot fall below {2 / 2**n:g}; run at least 3"
    if n < MIN_PAIRS_FOR_P:
        return f"{n} seeds: no p below 0.05 is possible (the smallest is {2 / 2**n:g}); run {MIN_PAIRS_FOR_P} or more"
    if mean_interval(differences) is None:
        return "all pairs differ by the same amount, so there is no interval"
    return ""


def _diverged(series: RunSeries, final: float | None, best: float | None) -> bool:
    for layer in series.layers:
        if layer.trainable and len(layer.grad_norm) and not np.isfinite(layer.grad_norm[-1]):
            return True
    return final is not None and best is not None and final < DIVERGED_SHARE * best
