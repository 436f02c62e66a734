"""Whether runs were unstable, and by which signs: one rule for the headline, the first answer and the folded runs."""

from __future__ import annotations

from collections.abc import Sequence

from stabilitylab.analysis.results import Drift, RunAnalysis, chance_of
from stabilitylab.analysis.sentences import count, factor_text

MORE_THAN_CHANCE = 0.01
"""The p-value below which spikes are called more than chance brings."""


def unstable(found: RunAnalysis) -> bool:
    """A dip, a gradient that is not finite, features that collapsed, or more spikes than chance brings. A norm that
    grows is told, but is no instability by itself."""
    return bool(found.dips) or broken(found) or collapsed(found) or spikes_beyond_chance([found])


def collapsed(found: RunAnalysis) -> bool:
    return found.collapse is not None and found.collapse.verdict == "collapsed"


def growing(found: Sequence[RunAnalysis]) -> list[Drift]:
    """Drifts of norms that grow; one that shrinks is what training does as it converges."""
    return [drift for a in found for drift in a.drifts or () if drift.grows]


def broken(found: RunAnalysis) -> bool:
    """Whether a gradient was not finite."""
    return any(spike.kind == "nonfinite" for spike in found.spikes or ())


def spikes_beyond_chance(found: Sequence[RunAnalysis]) -> bool:
    """Whether the runs together have more spikes than chance brings. Without a chance level: no."""
    judged = [analysis for analysis in found if analysis.false_alarms]
    spikes = sum(sum(spike.kind == "spike" for spike in a.spikes or ()) for a in judged)
    return chance_of(spikes, expected_by_chance(judged)) < MORE_THAN_CHANCE


def expected_by_chance(found: Sequence[RunAnalysis]) -> float:
    return sum(a.false_alarms.expected for a in found if a.false_alarms)


def states(found: Sequence[RunAnalysis]) -> list[str]:
    """What lasts: features that collapsed, norms that grow."""
    said = []
    gone = [a.collapse for a in found if collapsed(a) and a.collapse is not None]
    if len(found) == 1 and gone:
        said.append(f"features collapsed at iteration {gone[0].iteration}")
    elif gone:
        said.append(f"features collapsed in {count(len(gone), 'run')}")
    drifts = growing(found)
    if drifts:
        most = max(drifts, key=lambda drift: drift.factor)
        layers = len({drift.layer for drift in drifts})
        said.append(f"the norm of {count(layers, 'layer')} grows, by up to {factor_text(most.factor)} ({most.layer})")
    return said
