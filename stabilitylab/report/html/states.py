"""The rows of the report's tables of drifts, signs of collapse and pooled lags, as text."""

from __future__ import annotations

from collections.abc import Sequence

from stabilitylab.analysis.results import Collapse, RunAnalysis, Sign
from stabilitylab.analysis.sentences import factor_text
from stabilitylab.comparison.pooled import PooledLag

MOST_DRIFTS = 40


def drift_rows(analysis: RunAnalysis, most: int = MOST_DRIFTS) -> list[dict[str, str]]:
    """One row per drift, sorted by start."""
    return [
        {
            "layer": drift.layer,
            "start": f"{drift.start:,}",
            "end": f"{drift.end:,}",
            "before": f"{drift.before:.3g}",
            "after": f"{drift.after:.3g}",
            "factor": factor_text(drift.factor),
            "slope": f"{drift.slope:+.3g} ({drift.ci95[0]:+.3g} to {drift.ci95[1]:+.3g})"
            + ("" if drift.certain else ", not certain"),
        }
        for drift in (analysis.drifts or ())[:most]
    ]


def sign_rows(collapse: Collapse | None) -> list[dict[str, str]]:
    """One row per sign of collapse: its state, its final value and the reference value."""
    return [] if collapse is None else [_sign(sign) for sign in collapse.signs]


def _sign(sign: Sign) -> dict[str, str]:
    states = {"gone": "at chance" if sign.name == "loss" else "gone", "low": "low", "healthy": "healthy"}
    return {
        "sign": sign.name.replace("_", " "),
        "state": states.get(sign.state, f"not judged: {sign.reason}"),
        "since": "" if sign.since is None else f"{sign.since:,}",
        "value": "" if sign.value is None else f"{sign.value:.3g}",
        "healthy": "" if sign.healthy is None else f"{sign.healthy:.3g}",
    }


def pooled_rows(lags: Sequence[PooledLag]) -> list[dict[str, str]]:
    """One row per group and layer."""
    rows = []
    for lag in lags:
        known = lag.median_iterations is not None and lag.ci95 is not None
        rows.append(
            {
                "group": lag.group,
                "source": lag.source,
                "target": lag.target,
                "lag": f"{lag.median_iterations:g}" if known else "",
                "interval": f"{lag.ci95[0]:g} to {lag.ci95[1]:g}" if known and lag.ci95 else "",
                "p": "" if lag.p_value is None else f"{lag.p_value:.2g}",
                "matches": f"{lag.num_matched} in {lag.num_runs} of {lag.num_given} runs",
                "verdict": lag.verdict,
                "reason": lag.reason,
            }
        )
    return rows
