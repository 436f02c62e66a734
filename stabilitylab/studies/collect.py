"""The summary of a finished study: one row per run, small enough to commit and sufficient to judge its claims."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stabilitylab.analysis.detection.spikes import false_alarms
from stabilitylab.analysis.results import RunAnalysis, RunSeries
from stabilitylab.comparison.claims import Verdict, judge
from stabilitylab.comparison.effects import METRIC
from stabilitylab.comparison.pooled import PooledLag, pooled_between, pooled_lags
from stabilitylab.comparison.pooled_claims import pooled_columns
from stabilitylab.errors import ConfigError
from stabilitylab.report.writing import write_atomically
from stabilitylab.run.loading import load_run
from stabilitylab.run.provenance import provenance
from stabilitylab.store.reader import open_run
from stabilitylab.store.spreadsheet import cell
from stabilitylab.studies.restarting import is_complete
from stabilitylab.studies.study import NO_METRICS, PlannedRun, Study, look_up

RUNS, PROVENANCE, LAGS = "runs.csv", "provenance.json", "lags.csv"


def finished_runs(study: Study, root: Path) -> list[PlannedRun]:
    """The runs of the study that are complete."""
    return [run for run in study.runs if is_complete(root / run.name)]


def write_summary(study: Study, root: Path, folder: Path) -> list[dict[str, Any]]:
    """Write ``runs.csv``, ``provenance.json`` and ``lags.csv`` of the finished runs to ``folder``. Returns the rows.

    Raises ConfigError if no run is finished."""
    rows, meta = [], []
    keys = sorted({key for run in study.runs for key in run.axes} | {"train.seed", "mitigation"})
    settings: dict[str, list[tuple[dict[str, Any], RunAnalysis]]] = {}
    for run in finished_runs(study, root):
        row, about, analysis = _row(run, root / run.name, keys)
        rows.append(row)
        meta.append(about)
        settings.setdefault(str([row[key] for key in keys if key != "train.seed"]), []).append((row, analysis))
    groups: dict[str, list[RunAnalysis]] = {}
    for alike in settings.values():
        _add_pooled(alike)
        apart = [key for key in keys if len({str(row[key]) for row in rows}) > 1]
        varied = [f"{key} {alike[0][0][key]}" for key in apart if key not in ("train.seed", "mitigation")]
        groups[", ".join([*varied, str(alike[0][0]["mitigation"])])] = [analysis for _, analysis in alike]
    if not rows:
        raise ConfigError(f"study {study.name}: no run in {root} is finished; train them with stablab study")
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows([{key: cell(value) for key, value in row.items()} for row in rows])
    write_atomically(folder / RUNS, text.getvalue().encode())
    about = {
        "study": study.name,
        "command": shlex.join(["stablab", "study", str(study.path)]),
        "runs": {"finished": len(rows), "planned": len(study.runs)},
        "training_hours": round(sum(item["seconds"] for item in meta) / 3600, 3),
        "trained_at_commits": sorted({item["git_commit"] for item in meta if item["git_commit"]}),
        "machines": sorted({item["machine"] for item in meta if item["machine"]}),
        "summarised_with": provenance(),
    }
    write_atomically(folder / PROVENANCE, (json.dumps(about, indent=2) + "\n").encode())
    _write_lags(pooled_lags(groups), folder / LAGS)
    return rows


def _write_lags(lags: Sequence[PooledLag], file: Path) -> None:
    """One row per group and layer; no file if no group has two runs with spikes."""
    if not lags:
        return
    rows = []
    for lag in lags:
        row = asdict(lag)
        low, high = row.pop("ci95") or (None, None)
        rows.append({key: cell(_short(value)) for key, value in (row | {"low": low, "high": high}).items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(file, text.getvalue().encode())


def _add_pooled(alike: Sequence[tuple[dict[str, Any], RunAnalysis]]) -> None:
    """Add the lag of the last block behind the first layer, pooled over the runs of one setting, to their rows."""
    analyses = [analysis for _, analysis in alike]
    blocks = _block_names(analyses[0])
    pooled = pooled_between(analyses, blocks[-1]) if blocks else None
    for row, _ in alike:
        row |= {key: _short(value) for key, value in pooled_columns(pooled).items()}


def _row(run: PlannedRun, run_dir: Path, keys: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], RunAnalysis]:
    loaded = load_run(run_dir)
    series, analysis, config = loaded.series, loaded.analysis, run.config
    with open_run(run_dir) as reader:
        seconds = reader.query("SELECT coalesce(sum(seconds), 0) FROM iterations").fetchone()
        machine = [reader.meta.get(key, "") for key in ("cpu_model", "cpu_capability")]
        threads = reader.meta.get("threads", "")
        ended_early = reader.status == "stopped"
        meta = {"seconds": seconds[0] if seconds else 0.0, "git_commit": reader.meta.get("git_commit", "")}
        meta["machine"] = ", ".join(filter(None, [*machine, f"threads: {threads}" if threads else ""]))
    row: dict[str, Any] = {"run": run.name} | {key: look_up(config, key) for key in keys}
    metrics = {key: value for key, value in asdict(loaded.summary).items() if key not in NO_METRICS}
    leading = next((layer for layer in series.layers if layer.trainable), None)
    first = leading.name if leading else ""
    spikes = analysis.spikes or ()
    metrics |= training(series, ended_early) | {
        "iterations": series.iterations,
        "spikes": len(spikes),
        "spikes_first_layer": sum(spike.layer == first for spike in spikes),
        "dips": len(analysis.dips or ()),
        "lag_median": analysis.lag.median_iterations if analysis.lag else None,
        "lag_matched": analysis.lag.num_matched if analysis.lag else 0,
    }
    metrics["excess_first_layer"] = None
    if leading is not None and analysis.spikes is not None:
        by_chance = false_alarms([leading], analysis.settings).expected
        metrics["excess_first_layer"] = metrics["spikes_first_layer"] - by_chance
    metrics |= _blocks(analysis)
    return row | {key: _short(value) for key, value in metrics.items()}, meta, analysis


_BLOCK = re.compile(r"(^|\.)\d+$")


def _blocks(analysis: RunAnalysis) -> dict[str, Any]:
    """Spikes of the first block, which is comparable between frozen and learned projections, and the lag of the last
    block behind the first layer, because heads often do not spike at all."""
    blocks = _block_names(analysis)
    lags = {lag.layer: lag for lag in analysis.propagation or ()}
    last = lags.get(blocks[-1]) if blocks else None
    return {
        "spikes_first_block": sum(s.layer == blocks[0] for s in analysis.spikes or ()) if blocks else None,
        "lag_last_block": last.median_lag if last else None,
        "lag_last_block_matched": last.num_matched if last else 0,
    }


def _block_names(analysis: RunAnalysis) -> list[str]:
    return [name for name, _ in analysis.layers if _BLOCK.search(name)]


LEVEL_OVER = 9
"""Number of evaluations whose median is the final accuracy. A single evaluation has a large sampling error."""


def training(series: RunSeries, ended_early: bool) -> dict[str, Any]:
    """The accuracy of the untrained encoder, and whether the run is dead: its final accuracy is below it, or a
    non-finite loss ended it early."""
    curve = series.evals.get(METRIC)
    if curve is None or not len(curve.value) or curve.iteration[0] != 0 or not np.isfinite(curve.value[0]):
        return {"knn_untrained": None, "dead": None}
    untrained = float(curve.value[0])
    below = bool(np.nanmedian(curve.value[-LEVEL_OVER:]) < untrained)
    return {"knn_untrained": untrained, "dead": below or ended_early}


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def read_summary(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``runs.csv``; empty if the study was not run."""
    try:
        with (folder / RUNS).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def verdicts(study: Study, rows: Sequence[dict[str, Any]]) -> list[Verdict]:
    """Judge the claims of the study from its rows."""
    return [judge(claim, rows, study.looks) for claim in study.claims]


def is_open(study: Study, verdict: Verdict) -> bool:
    """Whether a claim is undecided and the study was stopped before all seeds of its sequential rule were used."""
    return bool(study.looks) and verdict.verdict == "inconclusive" and verdict.num_seeds < study.looks[-1]
