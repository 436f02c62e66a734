"""What the numbers say, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from stabilitylab.analysis.results import Comparison, RunAnalysis, RunSeries
from stabilitylab.report.figures import largest

Run = tuple[RunSeries, RunAnalysis]

DEFINITIONS = (
    ("iteration", "Optimizer updates made before this one, from 0."),
    ("gradient norm", "L2 norm of a layer's gradient, before any clipping and after AMP unscaling."),
    (
        "spike",
        "The logarithm of the gradient norm rises above the higher of two medians, that of the last 200 values that "
        "are no spike and that of the next 200, by more noise than chance brings, and the norm is at least twice the "
        "former. The threshold is fitted to the series' own downward excursions, so that noise alone raises at most "
        "one event per 10,000 iterations and layer. It ends below 3 noise sd; gaps of up to 3 iterations are bridged.",
    ),
    ("chance", "The same detector on the mirrored series, whose spikes are downward: what noise alone would flag."),
    (
        "lag",
        "Iterations from a spike in the first trained layer to the matching one in another, at most 100 apart on "
        "either side: matched one to one, around the lag that most pairs share. Median with the order-statistic 95% "
        "interval. The p-value compares how many match with circular shifts. Under 5 matches: inconclusive.",
    ),
    (
        "dip",
        "A fall of kNN accuracy below the level it had reached, by at least 4 standard errors and 1 point. Its area "
        "is accuracy lost times iterations.",
    ),
    ("kNN top-1", "Weighted kNN (k = 20, T = 0.07) of the base encoder's features on held-out images."),
    (
        "effect",
        "Mitigation minus baseline over runs with the same seed and learning rate. 95% t interval, sign-flip "
        "permutation p, Holm's correction over the mitigations.",
    ),
)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def _count(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "s")


def summary(series: RunSeries, found: RunAnalysis, status: str) -> str:
    """One run in a few sentences: was it unstable, where did it start, what did it cost."""
    if not series.iterations:
        return "Nothing is recorded yet."
    parts = []
    spikes = [s for s in found.spikes or () if s.kind == "spike"]
    broken = [s for s in found.spikes or () if s.kind == "nonfinite"]
    dips = found.dips or ()
    if broken:
        parts.append(f"Gradients were not finite from iteration {min(s.onset for s in broken)} on.")
    if not any(len(layer.iteration) for layer in series.layers):
        parts.append("No gradients were recorded.")
    elif not spikes:
        parts.append("No gradient spikes.")
    else:
        top = largest(spikes)
        assert top is not None
        layers = len({s.layer for s in spikes})
        parts.append(
            f"{_count(len(spikes), 'gradient spike')} in {_count(layers, 'layer')}; the first in {spikes[0].layer} at "
            f"iteration {spikes[0].onset}, the largest {top.ratio:.0f} times the usual norm, in {top.layer} at "
            f"{top.peak}."
        )
    if "knn_top1" in series.evals:
        if dips:
            deepest = max(dips, key=lambda dip: dip.depth)
            recovered = "did not recover" if deepest.recovered is None else f"recovered by {deepest.recovered}"
            parts.append(
                f"{_count(len(dips), 'accuracy dip')}; the deepest, {100 * deepest.depth:.1f} points at iteration "
                f"{deepest.trough}, {recovered}."
            )
        else:
            parts.append("No accuracy dips.")
    if status == "running":
        parts.append("The run is still training.")
    elif status in ("crashed", "stopped"):
        parts.append(f"The run {status} after {series.iterations} iterations.")
    return " ".join(parts)


def lag_sentence(found: RunAnalysis) -> str:
    """The lag from the first layer to the last with its interval, its p-value and the verdict."""
    lag = found.lag
    if lag is None:
        return ""
    if lag.median_iterations is None or lag.ci95 is None or lag.p_value is None:
        return f"Lag from {lag.source} to {lag.target}: {lag.verdict}. {lag.reason[:1].upper()}{lag.reason[1:]}."
    low, high = lag.ci95
    median = f"{lag.median_iterations:g} iterations (95% interval {low:g} to {high:g}, p = {lag.p_value:.2g})"
    matched = f"{lag.num_matched} of {lag.num_from} spikes matched"
    return f"Lag from {lag.source} to {lag.target}: {median}, {matched}: {lag.verdict}; {lag.reason}."


def link_sentence(found: RunAnalysis) -> str:
    """How many dips follow a spike, against chance."""
    link = found.dip_link
    if link is None or link.expected_by_chance is None or link.p_value is None:
        return ""
    return (
        f"{link.num_linked} of {_count(link.num_dips, 'dip')} {'follows' if link.num_linked == 1 else 'follow'} a "
        f"spike; chance gives {link.expected_by_chance:.1f} (p = {link.p_value:.2g})."
    )


def headline(runs: Sequence[Run], comparison: Comparison | None) -> str:
    """The first line of the page."""
    if comparison is None:
        series, found = runs[0]
        spikes = found.spikes or ()
        if not series.iterations:
            return "Nothing is recorded yet"
        if not any(len(layer.iteration) for layer in series.layers):
            return "No gradients recorded"
        if not spikes and not found.dips:
            return "No instability found"
        lag = found.lag
        if lag is not None and lag.verdict == "first leads" and lag.median_iterations is not None:
            later = f"{lag.median_iterations:g} iterations later"
            return f"Unstable: it starts in {lag.source} and reaches {lag.target} {later}"
        return f"Unstable: {_count(len(spikes), 'spike')}, {_count(len(found.dips or ()), 'accuracy dip')}"
    final = [effect for effect in comparison.effects if effect.metric == "final_knn"]
    if not final:
        return f"{len(runs)} runs side by side"
    best = max(final, key=lambda effect: effect.difference)
    verb = "ends higher" if best.difference > 0 else "does not end higher"
    seeds = _count(best.num_seeds, "seed")
    sure = ""
    if best.ci95 is None:
        sure = ", too few to say more"
    elif best.ci95[0] <= 0 <= best.ci95[1]:
        sure = ", and the interval holds zero"
    return (
        f"{best.mitigation} {verb}: {_percent(best.mitigated_mean)} against {_percent(best.baseline_mean)} kNN top-1 "
        f"({seeds}{sure})"
    )
