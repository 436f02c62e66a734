"""Impulse studies: a grid of runs, kicks in each run, and claims about the responses.

    title, base, [grid]    as in any study (studies/study.py)
    [impulse]              layers, at, size, kicks, horizon: what `stablab cause impulse` takes
    [[claim]]              text, where = {axis = value}, and one of
        kicked, reaches = "output" or "input", expect = "all" or "none", smallest = 0.1   on the log scale
        kicked, decay_longer_than = {axis = value}, smallest = 2.0   ratio of the time constant to that of other runs
        kicked, weaker_than = {axis = value}   smaller early response of the other layers than in other runs
        travels = "output" or "input"          larger early response in that direction, over all pairs of kicked layers

The decay is measured on the mean over all layers. Kicks of all seeds are pooled; intervals are bootstrap intervals over
starts.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stabilitylab.cause.claims import QUESTIONS, ImpulseVerdict
from stabilitylab.cause.experiments import load_impulse, save_impulse
from stabilitylab.cause.impulses import LOSS, Impulse, impulse_run, pool
from stabilitylab.cause.responses import resampled_mean, travel
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


def load_impulse_study(path: Path) -> ImpulseStudy:
    """Read and validate an impulse study. Raises ConfigError if it is invalid."""
    values = read_toml(path)
    impulse = values.pop("impulse", {})
    claims = values.pop("claim", [])
    unknown = [key for key in impulse if key not in _SETTINGS]
    if unknown or "layers" not in impulse or "at" not in impulse:
        raise ConfigError(f"{path}: [impulse] needs layers and at; its keys are {', '.join(_SETTINGS)}")
    for key, kind in (("layers", str), ("at", int)):
        given = impulse[key]
        if not isinstance(given, list) or not given or not all(type(x) is kind for x in given):
            raise ConfigError(f"{path}: [impulse] {key} must be a list of {'names' if kind is str else 'iterations'}")
    for claim in claims:
        asked = [question for question in QUESTIONS if question in claim]
        if len(asked) != 1 or "text" not in claim:
            raise ConfigError(f"{path}: claim {claim.get('text')!r} needs a text and one of {', '.join(QUESTIONS)}")
        if asked != ["travels"] and claim.get("kicked") not in impulse["layers"]:
            raise ConfigError(
                f"{path}: claim {claim['text']!r} needs a kicked layer, one of {', '.join(impulse['layers'])}"
            )
        for key in ("reaches", "travels"):
            if key in claim and claim[key] not in ("output", "input"):
                raise ConfigError(f"{path}: claim {claim['text']!r}: {key} is output or input, not {claim[key]!r}")
    return ImpulseStudy(str(values.get("title", path.stem)), planned_runs(path, values), impulse, tuple(claims))


def run_impulse_study(
    study: ImpulseStudy, root: Path, say: Callable[[str], None] = lambda _: None, *, collect: bool = False
) -> dict[str, Impulse]:
    """Train the missing runs and kick them. Results are saved next to each run: rerun the same command to continue.
    ``collect``: only read finished results."""
    impulses: dict[str, Impulse] = {}
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
        impulses[run.name] = known
        say(f"{number}/{len(study.runs)} {run.name}: {known.sentence()}")
    return impulses


def by_setting(study: ImpulseStudy, impulses: Mapping[str, Impulse]) -> dict[str, Impulse]:
    """Setting -> its finished runs, seeds pooled."""
    groups: dict[str, list[Impulse]] = {}
    for run in study.runs:
        name = ", ".join(f"{k.split('.')[-1]} {_plain(look_up(run.config, k))}" for k in run.axes if k != "train.seed")
        if run.name in impulses:
            groups.setdefault(name or "all runs", []).append(impulses[run.name])
    return {name: pool(members) for name, members in groups.items()}


def _plain(value: Any) -> str:
    return (" + ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)


def write_impulse_study(
    study: ImpulseStudy, impulses: Mapping[str, Impulse], folder: Path, verdicts: list[ImpulseVerdict]
) -> None:
    """Write tables of the pooled seeds of each setting: ``responses.csv`` (a row per setting and pair of layers),
    ``directions.csv`` (a row per setting: the direction in which kicks travel), ``metric.csv`` (change of the metric
    after the kicks), ``verdicts.json`` and ``matrix.png``."""
    from stabilitylab.cause.pictures import draw_matrices

    settings = by_setting(study, impulses)
    responses, ways, metrics = [], [], []
    for name, impulse in settings.items():
        for r in impulse.responses:
            peak, decay = _numbers(r.peak, *r.peak_ci95), _numbers(r.decay, *(r.decay_ci95 or (None, None)))
            counts = [impulse.kicks, len(impulse.at), r.reached, r.arrival, r.peak_at]
            responses.append([name, r.kicked, r.responding, *counts, *peak, *decay])
        order = (*impulse.order, LOSS)
        way = travel({layer: impulse.by_start(layer) for layer in impulse.differences}, order)
        if way is not None:
            numbers = _numbers(way.output, *way.output_ci95, way.input, *way.input_ci95)
            ways.append([name, way.pairs, way.starts, *numbers, *_numbers(way.difference, *way.difference_ci95)])
            ways[-1].append(way.verdict)
        for layer, by_offset in impulse.metric.items():
            for offset, values in by_offset.items():
                low, high = resampled_mean(values.reshape(len(impulse.at), -1).mean(1))
                metrics.append([name, layer, offset, len(values), *_numbers(float(values.mean()), low, high)])
    folder.mkdir(parents=True, exist_ok=True)
    columns = "setting,kicked,responding,kicks,starts,reached,arrival,peak_at,peak,peak_low,peak_high,decay,decay_low"
    _write_csv(folder / "responses.csv", f"{columns},decay_high", responses)
    columns = "setting,pairs,starts,output,output_low,output_high,input,input_low,input_high,difference,difference_low"
    _write_csv(folder / "directions.csv", f"{columns},difference_high,verdict", ways)
    _write_csv(folder / "metric.csv", "setting,kicked,iterations_after,kicks,mean,low,high", metrics)
    stated = [vars(verdict) for verdict in verdicts]
    (folder / "verdicts.json").write_text(json.dumps(stated, indent=1) + "\n", encoding="utf-8")
    draw_matrices(settings, folder / "matrix.png")


def _numbers(*values: float | None) -> list[str]:
    return ["" if value is None else f"{value:.4g}" for value in values]


def _write_csv(path: Path, columns: str, rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns.split(","))
        table.writerows(rows)
