"""Impulse studies: a grid of runs, kicks in each run, and claims about the responses.

    title, base, [grid]    as in any study (studies/study.py)
    [impulse]              layers, at, size, kicks, horizon: what `stablab cause impulse` takes
    [[claim]]              text, kicked, where = {axis = value}, and one of
        decay_longer_than = {axis = value}, smallest = 2.0   ratio of the time constant to that of other runs
        reaches = "output" or "input"; expect = "all" or "none"; smallest = 0.1   on the log scale

The decay is measured on the mean over all layers. Kicks of all seeds are pooled; intervals are bootstrap intervals.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stabilitylab.cause.experiments import load_impulse, save_impulse
from stabilitylab.cause.impulses import Impulse, impulse_run, pool
from stabilitylab.cause.responses import FEWEST, RESAMPLES, time_constant
from stabilitylab.config import read_toml
from stabilitylab.errors import ConfigError
from stabilitylab.studies.restarting import train_or_resume
from stabilitylab.studies.study import PlannedRun, look_up, planned_runs

_SETTINGS = ("layers", "at", "size", "kicks", "horizon", "metric_every")


@dataclass(frozen=True)
class ImpulseStudy:
    """``impulse``: the settings of the kicks. ``claims``: as in the file."""

    title: str
    runs: tuple[PlannedRun, ...]
    impulse: dict[str, Any]
    claims: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class ImpulseVerdict:
    """``verdict``: reproduced, contradicted, inconclusive or not run. ``reason``: the numbers behind it."""

    text: str
    verdict: str
    reason: str


def load_impulse_study(path: Path) -> ImpulseStudy:
    """Read and validate an impulse study. Raises ConfigError if it is invalid."""
    values = read_toml(path)
    impulse = values.pop("impulse", {})
    claims = values.pop("claim", [])
    unknown = [key for key in impulse if key not in _SETTINGS]
    if unknown or "layers" not in impulse or "at" not in impulse:
        raise ConfigError(f"{path}: [impulse] needs layers and at; its keys are {', '.join(_SETTINGS)}")
    for claim in claims:
        if claim.get("kicked") not in impulse["layers"] or ("reaches" in claim) == ("decay_longer_than" in claim):
            raise ConfigError(
                f"{path}: claim {claim.get('text')!r} needs a kicked layer and either reaches or decay_longer_than"
            )
    return ImpulseStudy(str(values.get("title", path.stem)), planned_runs(path, values), impulse, tuple(claims))


def run_impulse_study(
    study: ImpulseStudy, root: Path, say: Callable[[str], None] = lambda _: None, *, collect: bool = False
) -> dict[str, Impulse]:
    """Train the missing runs and kick them. Results are saved next to each run: rerun the same command to continue.
    ``collect``: only read finished results."""
    found: dict[str, Impulse] = {}
    for number, run in enumerate(study.runs, 1):
        folder = root / run.name if collect else train_or_resume(run.config, root, run.name)
        known = load_impulse(folder, study.impulse)
        if known is None and collect:
            continue
        if known is None:
            frozen = "frozen-patch" in run.config.mitigation
            layers = [name for name in study.impulse["layers"] if not (frozen and name == "patch_embed")]
            known = impulse_run(folder, **(study.impulse | {"layers": layers}))
            save_impulse(folder, known, study.impulse)
        found[run.name] = known
        say(f"{number}/{len(study.runs)} {run.name}: {known.sentence()}")
    return found


def _chosen(study: ImpulseStudy, found: Mapping[str, Impulse], where: Mapping[str, Any], kicked: str) -> Impulse | None:
    among = [
        found[run.name]
        for run in study.runs
        if run.name in found
        and kicked in found[run.name].differences
        and all(look_up(run.config, key) == value for key, value in where.items())
    ]
    return pool(among) if among else None


def judge(study: ImpulseStudy, found: Mapping[str, Impulse]) -> list[ImpulseVerdict]:
    """Decide each claim by its confidence interval."""
    verdicts = []
    for claim in study.claims:
        kicked = claim["kicked"]
        treated = _chosen(study, found, claim.get("where", {}), kicked)
        if treated is None:
            verdicts.append(ImpulseVerdict(claim["text"], "not run", "none of its runs is finished"))
        elif "reaches" in claim:
            verdicts.append(_judge_reach(claim, treated))
        else:
            baseline = _chosen(study, found, claim["decay_longer_than"], kicked)
            verdicts.append(_judge_decay(claim, treated, baseline))
    return verdicts


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
    if not among or among[0].reached is None:
        starts = len(impulse.at)
        return ImpulseVerdict(claim["text"], "inconclusive", f"kicks start at too few iterations to judge ({starts})")
    hit = [r for r in among if r.reached]
    within = [r for r in among if r.low.min() > -smallest and r.high.max() < smallest]
    reason = (
        f"{impulse.kicks} kicks of {kicked}: {len(hit)} of {len(among)} layers reached, {len(within)} stayed within "
        f"+-{smallest:g} on the log scale"
    )
    if claim.get("expect", "all") == "all":
        verdict = "reproduced" if len(hit) == len(among) else "contradicted" if within else "inconclusive"
    else:
        verdict = "reproduced" if len(within) == len(among) else "contradicted" if hit else "inconclusive"
    return ImpulseVerdict(claim["text"], verdict, reason)


def decays(impulse: Impulse, kicked: str, seed: int = 0) -> tuple[float, np.ndarray]:
    """Time constant of the mean over layers, in iterations, and its bootstrap samples."""
    with np.errstate(invalid="ignore"):
        curves = np.nan_to_num(np.nanmean(impulse.by_start(kicked)[:, :, :-1], axis=2))  # (S, T)
    mean = curves.mean(0)
    start = int(np.abs(mean[: len(mean) // 2]).argmax())
    chosen = np.random.default_rng(seed).integers(0, len(curves), (RESAMPLES, len(curves)))
    return float(time_constant(mean[None, start:])[0]), time_constant(curves[chosen].mean(1)[:, start:])


def _judge_decay(claim: Mapping[str, Any], treated: Impulse, baseline: Impulse | None) -> ImpulseVerdict:
    if baseline is None:
        return ImpulseVerdict(claim["text"], "not run", "none of the runs to compare with is finished")
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


def write_impulse_study(
    study: ImpulseStudy, found: Mapping[str, Impulse], folder: Path, verdicts: list[ImpulseVerdict]
) -> None:
    """Write ``responses.csv`` (one row per run and pair of layers), ``verdicts.json`` and ``matrix.png``."""
    from stabilitylab.cause.pictures import draw_matrices

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "responses.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["run", "kicked", "responding", "kicks", "reached", "arrival", "peak", "low", "high", "decay"])
        for name, impulse in found.items():
            for r in impulse.responses:
                numbers = [f"{x:.4g}" for x in (r.peak, *r.peak_ci95)]
                decay = "" if r.decay is None else f"{r.decay:.3g}"
                table.writerow([name, r.kicked, r.responding, impulse.kicks, r.reached, r.arrival, *numbers, decay])
    stated = [vars(verdict) for verdict in verdicts]
    (folder / "verdicts.json").write_text(json.dumps(stated, indent=1) + "\n", encoding="utf-8")
    groups: dict[str, list[Impulse]] = {}
    for run in study.runs:
        label = ", ".join(f"{k.split('.')[-1]} {look_up(run.config, k)}" for k in run.axes if k != "train.seed")
        if run.name in found:
            groups.setdefault(label, []).append(found[run.name])
    draw_matrices({name: pool(members) for name, members in groups.items()}, folder / "matrix.png")
