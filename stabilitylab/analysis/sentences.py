"""One-sentence summaries of results, for reports, notebooks and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stabilitylab.analysis.results import RunAnalysis, Spike


def percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def count(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "s")


def lag_sentence(analysis: RunAnalysis) -> str:
    """The lag from the first layer to the last, with its interval, p-value and verdict."""
    lag = analysis.lag
    if lag is None:
        return ""
    if lag.median_iterations is None or lag.ci95 is None or lag.p_value is None:
        return f"Lag from {lag.source} to {lag.target}: {lag.verdict}. {lag.reason[:1].upper()}{lag.reason[1:]}."
    low, high = lag.ci95
    median = f"{lag.median_iterations:g} iterations (95% interval {low:g} to {high:g}, p = {lag.p_value:.2g})"
    matched = f"{lag.num_matched} of {lag.num_from} spikes matched"
    return f"Lag from {lag.source} to {lag.target}: {median}, {matched}: {lag.verdict}; {lag.reason}."


def cross_sentence(analysis: RunAnalysis) -> str:
    """The estimate of the lag by cross-correlation, and whether it agrees with the first."""
    cross = analysis.lag.cross if analysis.lag is not None else None
    if cross is None or analysis.lag is None:
        return ""
    agree = {True: "; the two agree", False: "; the two do not agree", None: ""}[analysis.lag.agree]
    return (
        f"By cross-correlation: {cross.lag:g} iterations (95% interval {cross.ci95[0]:g} to {cross.ci95[1]:g}, "
        f"correlation {cross.correlation:.2f}, p = {cross.p_value:.2g}){agree}."
    )


def early_sentence(analysis: RunAnalysis) -> str:
    """Whether a signal rose before the spikes."""
    early = analysis.early_warning
    if early is None or early.hit_rate is None:
        return ""
    lead = f", by a median of {early.median_lead:g} iterations" if early.median_lead is not None else ""
    chance = "" if early.hit_rate_by_chance is None else f"; chance gives {percent(early.hit_rate_by_chance)}"
    return (
        f"{early.signal} rose before {early.num_warned} of {count(early.num_spikes, 'spike')}{lead} "
        f"({percent(early.hit_rate)}{chance}), with {count(early.num_false, 'false alarm')}."
    )


def link_sentence(analysis: RunAnalysis) -> str:
    """How many dips follow a spike, compared with chance."""
    link = analysis.dip_link
    if link is None or link.expected_by_chance is None or link.p_value is None:
        return ""
    return (
        f"{link.num_linked} of {count(link.num_dips, 'dip')} {'follows' if link.num_linked == 1 else 'follow'} a "
        f"spike; chance gives {link.expected_by_chance:.1f} (p = {link.p_value:.2g})."
    )


def collapse_words(analysis: RunAnalysis) -> str:
    """The verdict on collapse as words: ``collapsed at iteration 440``, ``not collapsed``, ``not judged``."""
    collapse = analysis.collapse
    if collapse is None:
        return ""
    verdict = {"not": "not collapsed", "partly": "partly collapsed"}.get(collapse.verdict, collapse.verdict)
    return verdict + ("" if collapse.iteration is None else f" at iteration {collapse.iteration}")


def collapse_sentence(analysis: RunAnalysis) -> str:
    """Whether the features collapsed, since when, and by which signs."""
    collapse = analysis.collapse
    if collapse is None:
        return ""
    if collapse.verdict == "not judged":
        return f"Collapse is not judged: {collapse.reason}."
    if collapse.verdict == "not":
        return f"No collapse ({collapse.reason})."
    verdict = "Collapsed" if collapse.verdict == "collapsed" else "Partly collapsed"
    return f"{verdict} from iteration {collapse.iteration} on: {collapse.reason}."


def factor_text(factor: float) -> str:
    """A factor of growth, or of shrinking: ``439x``, ``1/12``."""
    return f"{factor:.3g}x" if factor >= 1 else f"1/{1 / factor:.3g}"


def drift_sentence(analysis: RunAnalysis) -> str:
    """How many norms drift, which one changes most, and how many may drift; empty without drift or if drift was not
    judged."""
    certain = analysis.certain_drifts
    parts = []
    if certain:
        most = max(certain, key=lambda drift: abs(math.log(drift.factor)))
        layers = len({drift.layer for drift in certain})
        parts.append(
            f"The gradient norm drifts in {count(layers, 'layer')}; most in {most.layer}, from {most.before:.3g} to "
            f"{most.after:.3g} ({factor_text(most.factor)}) over iterations {most.start:,} to {most.end:,}."
        )
    maybe = len({drift.layer for drift in analysis.drifts or ()} - {drift.layer for drift in certain})
    if maybe:
        other = "another " if certain and maybe == 1 else "other " if certain else ""
        where = f"{other}layer" if other == "another " else f"{maybe} {other}layer{'' if maybe == 1 else 's'}"
        parts.append(
            f"In {where} the norm changes by a factor of 10 or more, but wanders so much that a drift is not certain."
        )
    return " ".join(parts)


def drift_count(analysis: RunAnalysis) -> str:
    """The number of drifts, and how many more are not certain."""
    certain = len(analysis.certain_drifts)
    maybe = len(analysis.drifts or ()) - certain
    return f"{certain}" + (f", and {maybe} that {'is' if maybe == 1 else 'are'} not certain" if maybe else "")


def largest(spikes: Sequence[Spike]) -> Spike | None:
    """The spike with the largest ratio, ignoring non-finite events; None without any."""
    return max((s for s in spikes if s.kind == "spike"), key=lambda s: s.ratio, default=None)
