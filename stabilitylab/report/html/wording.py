"""Describe the results in sentences."""

from __future__ import annotations

from stabilitylab.analysis.results import RunAnalysis, RunSeries
from stabilitylab.analysis.sentences import count, largest
from stabilitylab.report.metric import MetricText


def summary(series: RunSeries, analysis: RunAnalysis, status: str) -> str:
    """Describe a run in a few sentences: was it unstable, where did it start, what did it cost."""
    if not series.iterations:
        return "Nothing is recorded yet."
    parts = []
    spikes = [s for s in analysis.spikes or () if s.kind == "spike"]
    broken = [s for s in analysis.spikes or () if s.kind == "nonfinite"]
    dips = analysis.dips or ()
    if broken:
        parts.append(f"Gradients were not finite from iteration {min(s.onset for s in broken)} on.")
    if not any(len(layer.iteration) for layer in series.layers):
        parts.append("No gradients were recorded.")
    elif analysis.spikes_unjudged:
        parts.append(f"Gradient spikes were not judged: {analysis.spikes_reason}.")
    elif not spikes:
        parts.append("No gradient spikes.")
    else:
        top = largest(spikes)
        assert top is not None
        layers = len({s.layer for s in spikes})
        parts.append(
            f"{count(len(spikes), 'gradient spike')} in {count(layers, 'layer')}; the first in {spikes[0].layer} at "
            f"iteration {spikes[0].onset}, the largest in {top.layer} at {top.peak}, {top.ratio:.0f} times the usual "
            "norm."
        )
    metric = MetricText.of([analysis])
    if dips:
        deepest = max(dips, key=lambda dip: dip.depth)
        recovered = "did not recover" if deepest.recovered is None else f"recovered by {deepest.recovered}"
        parts.append(
            f"{metric.dips(len(dips))}; the {'deepest' if metric.higher else 'largest'}, {metric.depth(deepest.depth)} "
            f"at iteration {deepest.trough}, {recovered}."
        )
    elif analysis.dips is None:
        parts.append("Dips were not judged.")
    else:
        parts.append(f"No {metric.dips(0).removeprefix('0 ')}.")
    if status == "running":
        parts.append("The run is still training.")
    elif status in ("crashed", "stopped"):
        parts.append(f"The run {status} after {series.iterations} iterations.")
    return " ".join(parts)


def norms_in_words(analysis: RunAnalysis, names: list[str]) -> str:
    """Describe the chart of gradient norms for screen readers."""
    parts = []
    for name in names:
        spikes = [s for s in analysis.spikes or () if s.layer == name and s.kind == "spike"]
        top = largest(spikes)
        peak = f", the largest {top.ratio:.1f} times the usual norm at iteration {top.peak}" if top else ""
        parts.append(f"{name}: {count(len(spikes), 'spike')}{peak}")
    return f"Line chart of gradient norms over iterations. {'; '.join(parts)}."


def heat_in_words(analysis: RunAnalysis) -> str:
    """Describe the heat map for screen readers."""
    spikes = [s for s in analysis.spikes or () if s.kind == "spike"]
    shared = [e for e in analysis.episodes or () if len(e.order) > 1]
    text = "Heat map of gradient norms, layers from input to output against iterations. "
    text += f"{count(len(spikes), 'spike')} in {count(len({s.layer for s in spikes}), 'layer')}"
    if shared:
        farthest = max(shared, key=lambda e: (len(e.order), e.z))
        text += (
            f", {count(len(shared), 'episode')} with several layers; the largest begins in {farthest.leader} "
            f"at iteration {farthest.start} and involves {len(farthest.order)} layers"
        )
    return text + "."


def curves_in_words(what: str, named: list[tuple[str, float]], unit: str) -> str:
    """Describe a chart of curves for screen readers: the final value of each."""
    ends = "; ".join(f"{name} ends at {value:.4g}{unit}" for name, value in named)
    return f"Line chart of {what} over iterations. {ends}."
