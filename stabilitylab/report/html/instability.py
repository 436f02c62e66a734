"""Decide whether runs were unstable, with the same rule for the headline, the first answer and the folded runs."""

from __future__ import annotations

from collections.abc import Sequence

from stabilitylab.analysis.results import Collapse, Drift, RunAnalysis, chance_of
from stabilitylab.analysis.sentences import count, factor_text

MORE_THAN_CHANCE = 0.01
"""The p-value below which the number of spikes counts as more than expected by chance."""


def unstable(analysis: RunAnalysis) -> bool:
    """Whether a run has a dip, a non-finite gradient, collapsed features, or more spikes than expected by chance. A
    growing norm and partly collapsed features are reported, but do not count as instability."""
    return bool(analysis.dips) or broken(analysis) or collapsed(analysis) or spikes_beyond_chance([analysis])


def collapsed(analysis: RunAnalysis) -> bool:
    return analysis.collapse is not None and analysis.collapse.verdict == "collapsed"


def drifting(analyses: Sequence[RunAnalysis], *, up: bool) -> list[Drift]:
    """Certain drifts of growing or of shrinking norms. Norms that shrink are normal when training converges."""
    return [drift for a in analyses for drift in a.certain_drifts if drift.grows == up]


def doubtful(analyses: Sequence[RunAnalysis]) -> bool:
    """Whether any run has a lasting change that is not instability, but may be a fault: see `states`."""
    return bool(_collapses(analyses, "partly") or drifting(analyses, up=True))


def _collapses(analyses: Sequence[RunAnalysis], verdict: str) -> list[Collapse]:
    return [a.collapse for a in analyses if a.collapse is not None and a.collapse.verdict == verdict]


def broken(analysis: RunAnalysis) -> bool:
    """Whether any gradient was not finite."""
    return any(spike.kind == "nonfinite" for spike in analysis.spikes or ())


def spikes_beyond_chance(analyses: Sequence[RunAnalysis]) -> bool:
    """Whether the runs together have more spikes than expected by chance; False if the chance level is unknown."""
    judged = [analysis for analysis in analyses if analysis.false_alarms]
    spikes = sum(sum(spike.kind == "spike" for spike in a.spikes or ()) for a in judged)
    return chance_of(spikes, expected_by_chance(judged)) < MORE_THAN_CHANCE


def expected_by_chance(analyses: Sequence[RunAnalysis]) -> float:
    return sum(a.false_alarms.expected for a in analyses if a.false_alarms)


def states(analyses: Sequence[RunAnalysis]) -> list[str]:
    """Descriptions of lasting changes: collapsed or partly collapsed features, growing and shrinking norms."""
    parts = []
    for verdict, words in (("collapsed", "features collapsed"), ("partly", "features partly collapsed")):
        collapses = _collapses(analyses, verdict)
        if len(analyses) == 1 and collapses:
            parts.append(f"{words} at iteration {collapses[0].iteration}")
        elif collapses:
            parts.append(f"{words} in {count(len(collapses), 'run')}")
    for up, verb in ((True, "grows by up to"), (False, "shrinks to as little as")):
        drifts = drifting(analyses, up=up)
        if drifts:
            most = max(drifts, key=lambda drift: drift.factor if up else 1 / drift.factor)
            layers = len({drift.layer for drift in drifts})
            parts.append(f"the norm of {count(layers, 'layer')} {verb} {factor_text(most.factor)} ({most.layer})")
    return parts
