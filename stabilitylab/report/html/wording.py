"""What the numbers say, in plain words."""

from __future__ import annotations

from stabilitylab.analysis.results import RunAnalysis, RunSeries
from stabilitylab.report.html.figures import largest


def percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def count(n: int, word: str) -> str:
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
            f"{count(len(spikes), 'gradient spike')} in {count(layers, 'layer')}; the first in {spikes[0].layer} at "
            f"iteration {spikes[0].onset}, the largest {top.ratio:.0f} times the usual norm, in {top.layer} at "
            f"{top.peak}."
        )
    if "knn_top1" in series.evals:
        if dips:
            deepest = max(dips, key=lambda dip: dip.depth)
            recovered = "did not recover" if deepest.recovered is None else f"recovered by {deepest.recovered}"
            parts.append(
                f"{count(len(dips), 'accuracy dip')}; the deepest, {100 * deepest.depth:.1f} points at iteration "
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


def cross_sentence(found: RunAnalysis) -> str:
    """The second, independent estimate of the lag, and whether the two agree."""
    cross = found.lag.cross if found.lag is not None else None
    if cross is None or found.lag is None:
        return ""
    agree = {True: "; the two agree", False: "; the two do not agree", None: ""}[found.lag.agree]
    return (
        f"By cross-correlation: {cross.lag:g} iterations (95% interval {cross.ci95[0]:g} to {cross.ci95[1]:g}, "
        f"correlation {cross.correlation:.2f}, p = {cross.p_value:.2g}){agree}."
    )


def early_sentence(found: RunAnalysis) -> str:
    """Whether a signal rose before the spikes did."""
    early = found.early_warning
    if early is None or early.hit_rate is None:
        return ""
    lead = f", a median of {early.median_lead:g} iterations before" if early.median_lead is not None else ""
    chance = "" if early.hit_rate_by_chance is None else f"; chance gives {percent(early.hit_rate_by_chance)}"
    return (
        f"{early.signal} warned of {early.num_warned} of {count(early.num_spikes, 'spike')}{lead} "
        f"({percent(early.hit_rate)}{chance}), with {count(early.num_false, 'false alarm')}."
    )


def link_sentence(found: RunAnalysis) -> str:
    """How many dips follow a spike, against chance."""
    link = found.dip_link
    if link is None or link.expected_by_chance is None or link.p_value is None:
        return ""
    return (
        f"{link.num_linked} of {count(link.num_dips, 'dip')} {'follows' if link.num_linked == 1 else 'follow'} a "
        f"spike; chance gives {link.expected_by_chance:.1f} (p = {link.p_value:.2g})."
    )


def norms_in_words(found: RunAnalysis, names: list[str]) -> str:
    """What a reader who cannot see the chart of gradient norms misses."""
    parts = []
    for name in names:
        spikes = [s for s in found.spikes or () if s.layer == name and s.kind == "spike"]
        top = largest(spikes)
        said = f", the largest {top.ratio:.1f} times usual at iteration {top.peak}" if top else ""
        parts.append(f"{name}: {count(len(spikes), 'spike')}{said}")
    return f"Line chart of gradient norms over iterations. {'; '.join(parts)}."


def heat_in_words(found: RunAnalysis) -> str:
    """The same for the heat map."""
    spikes = [s for s in found.spikes or () if s.kind == "spike"]
    shared = [e for e in found.episodes or () if len(e.order) > 1]
    said = "Heat map of gradient norms, layers from input to output against iterations. "
    said += f"{count(len(spikes), 'spike')} in {count(len({s.layer for s in spikes}), 'layer')}"
    if shared:
        farthest = max(shared, key=lambda e: (len(e.order), e.z))
        said += (
            f", {count(len(shared), 'episode')} of several layers; the farthest-reaching begins in {farthest.leader} "
            f"at iteration {farthest.start} and takes in {len(farthest.order)} layers"
        )
    return said + "."


def curves_in_words(what: str, named: list[tuple[str, float]], unit: str) -> str:
    """The same for curves: where each ends."""
    ends = "; ".join(f"{name} ends at {value:.4g}{unit}" for name, value in named)
    return f"Line chart of {what} over iterations. {ends}."
