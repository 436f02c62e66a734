"""Claims about impulses, each decided by its confidence interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stabilitylab.cause.impulses import LOSS, Impulse, pool
from stabilitylab.cause.responses import EARLY, FEWEST, RESAMPLES, time_constant, travel
from stabilitylab.studies.study import PlannedRun, look_up

QUESTIONS = ("reaches", "decay_longer_than", "weaker_than", "travels")
"""Each claim has one of these keys."""


@dataclass(frozen=True)
class ImpulseVerdict:
    """``verdict``: reproduced, contradicted, inconclusive or not run. ``reason``: the numbers behind it."""

    text: str
    verdict: str
    reason: str


def _chosen(
    runs: Sequence[PlannedRun], impulses: Mapping[str, Impulse], where: Mapping[str, Any], kicked: str | None
) -> Impulse | None:
    among = [
        impulses[run.name]
        for run in runs
        if run.name in impulses
        and (kicked is None or kicked in impulses[run.name].differences)
        and all(look_up(run.config, key) == value for key, value in where.items())
    ]
    return pool(among) if among else None


def judge(
    claims: Sequence[Mapping[str, Any]], runs: Sequence[PlannedRun], impulses: Mapping[str, Impulse]
) -> list[ImpulseVerdict]:
    """Decide each claim by its confidence interval. ``found``: name of a finished run -> its impulses."""
    return [_judge(runs, impulses, claim) for claim in claims]


def _judge(runs: Sequence[PlannedRun], impulses: Mapping[str, Impulse], claim: Mapping[str, Any]) -> ImpulseVerdict:
    kicked = claim.get("kicked")
    treated = _chosen(runs, impulses, claim.get("where", {}), kicked)
    if treated is None:
        return ImpulseVerdict(claim["text"], "not run", "none of its runs is finished")
    if "reaches" in claim:
        return _judge_reach(claim, treated)
    if "travels" in claim:
        return _judge_travel(claim, treated)
    question, decide = (
        ("decay_longer_than", _judge_decay) if "decay_longer_than" in claim else ("weaker_than", _judge_weaker)
    )
    baseline = _chosen(runs, impulses, claim[question], kicked)
    if baseline is None:
        return ImpulseVerdict(claim["text"], "not run", "none of the runs to compare with is finished")
    return decide(claim, treated, baseline)


def _judge_reach(claim: Mapping[str, Any], impulse: Impulse) -> ImpulseVerdict:
    place = {name: i for i, name in enumerate(impulse.order)}
    kicked, smallest = claim["kicked"], float(claim.get("smallest", 0.1))
    ahead = claim["reaches"] == "output"
    among = [
        r
        for r in impulse.responses
        if r.kicked == kicked
        and r.responding in place
        and np.isfinite(r.mean).all()
        and np.abs(r.mean).max() > 0
        and (place[r.responding] > place[kicked] if ahead else place[r.responding] < place[kicked])
    ]
    if not among:
        return ImpulseVerdict(
            claim["text"], "inconclusive", f"no layer responds on the {claim['reaches']} side of {kicked}"
        )
    if among[0].reached is None:
        starts = len(impulse.at)
        return ImpulseVerdict(claim["text"], "inconclusive", f"kicks start at too few iterations to judge ({starts})")
    hit = [r for r in among if r.reached]
    within = [r for r in among if r.low.min() > -smallest and r.high.max() < smallest]
    small, large = [r for r in within if not r.reached], [r for r in hit if not any(r is w for w in within)]
    reason = (
        f"{impulse.kicks} kicks of {kicked}: {len(hit)} of {len(among)} layers reached, {len(within)} stayed within "
        f"+-{smallest:g} on the log scale"
    )
    if claim.get("expect", "all") == "all":
        verdict = "reproduced" if len(hit) == len(among) else "contradicted" if small else "inconclusive"
    else:
        verdict = "reproduced" if len(within) == len(among) else "contradicted" if large else "inconclusive"
    return ImpulseVerdict(claim["text"], verdict, reason)


def decays(impulse: Impulse, kicked: str, seed: int = 0) -> tuple[float, np.ndarray]:
    """Time constant of the mean over layers, in iterations, and its bootstrap samples."""
    with np.errstate(invalid="ignore"):
        curves = np.nan_to_num(np.nanmean(impulse.by_start(kicked)[:, :, :-1], axis=2))  # (S, T)
    mean = curves.mean(0)
    start = int(np.abs(mean[: len(mean) // 2]).argmax())
    chosen = np.random.default_rng(seed).integers(0, len(curves), (RESAMPLES, len(curves)))
    return float(time_constant(mean[None, start:])[0]), time_constant(curves[chosen].mean(1)[:, start:])


def _judge_decay(claim: Mapping[str, Any], treated: Impulse, baseline: Impulse) -> ImpulseVerdict:
    (one, many), (other, others) = decays(treated, claim["kicked"], 0), decays(baseline, claim["kicked"], 1)
    # A time constant beyond the horizon counts as the horizon, so the ratio is a lower bound.
    horizon = treated.differences[claim["kicked"]].shape[1]
    ratio = np.minimum(many, horizon) / np.minimum(others, horizon)
    low, high = np.percentile(ratio, [2.5, 97.5])
    smallest = float(claim.get("smallest", 2.0))
    reason = (
        f"time constants {one:.3g} and {other:.3g} iterations, ratio {min(one, horizon) / min(other, horizon):.2f} "
        f"[{low:.2f}, {high:.2f}] of {treated.kicks} and {baseline.kicks} kicks (horizon {horizon})"
    )
    if min(len(treated.at), len(baseline.at)) < FEWEST:
        return ImpulseVerdict(claim["text"], "inconclusive", f"{reason}; kicks start at too few iterations to judge")
    censored = np.isinf(many).mean() > 0.025
    verdict = "reproduced" if low >= smallest else "contradicted" if high < smallest else "inconclusive"
    if verdict == "contradicted" and censored:
        verdict = "inconclusive"  # the decay under test is longer than the horizon
    return ImpulseVerdict(claim["text"], verdict, reason)


def _judge_travel(claim: Mapping[str, Any], impulse: Impulse) -> ImpulseVerdict:
    travels = travel({name: impulse.by_start(name) for name in impulse.differences}, (*impulse.order, LOSS))
    if travels is None:
        return ImpulseVerdict(claim["text"], "inconclusive", "fewer than two layers were kicked")
    reason = (
        f"mean log response of the first {EARLY} iterations over {travels.pairs} pairs of layers, "
        f"{travels.starts} starts: {_with_interval(travels.output, travels.output_ci95)} towards the output, "
        f"{_with_interval(travels.input, travels.input_ci95)} towards the input, difference "
        f"{_with_interval(travels.difference, travels.difference_ci95)}"
    )
    verdict = {claim["travels"]: "reproduced", "inconclusive": "inconclusive"}.get(travels.verdict, "contradicted")
    told = f"towards the {travels.verdict}" if travels.verdict in ("output", "input") else travels.verdict
    return ImpulseVerdict(claim["text"], verdict, f"{told}: {reason}")


def early_responses(impulse: Impulse, kicked: str) -> dict[str, np.ndarray]:
    """Other layer -> (S,): mean log response in the first `EARLY` iterations, a value per start. Layers without a
    gradient are left out."""
    with np.errstate(invalid="ignore"):
        values = impulse.by_start(kicked)[:, :EARLY].mean(1)  # (S, R)
    return {
        name: values[:, i] for i, name in enumerate(impulse.order) if name != kicked and np.abs(values[:, i]).max() > 0
    }


def _judge_weaker(claim: Mapping[str, Any], treated: Impulse, baseline: Impulse) -> ImpulseVerdict:
    responses = [early_responses(x, claim["kicked"]) for x in (treated, baseline)]
    shared = [name for name in responses[0] if name in responses[1]]
    one, other = (np.stack([x[name] for name in shared]).mean(0) for x in responses)
    rng = np.random.default_rng(0)
    means = [x[rng.integers(0, len(x), (RESAMPLES, len(x)))].mean(1) for x in (one, other)]
    low, high = (float(x) for x in np.percentile(means[0] - means[1], [2.5, 97.5]))
    reason = (
        f"mean log response of {len(shared)} other layers in the first {EARLY} iterations {one.mean():+.3f} and "
        f"{other.mean():+.3f}, difference {_with_interval(float(one.mean() - other.mean()), (low, high))}, "
        f"{len(one)} and {len(other)} starts"
    )
    if min(len(treated.at), len(baseline.at)) < FEWEST:
        return ImpulseVerdict(claim["text"], "inconclusive", f"{reason}; too few to judge")
    verdict = "reproduced" if high < 0 else "contradicted" if low > 0 else "inconclusive"
    return ImpulseVerdict(claim["text"], verdict, reason)


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"
