"""The page of a finished study: its settings, machine and cost, its claims, and the pooled lags of its groups."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stabilitylab.comparison.claims import Verdict
from stabilitylab.comparison.decisions import LEVEL
from stabilitylab.report.writing import write_atomically
from stabilitylab.studies.collect import LAGS, PROVENANCE, is_open, verdicts
from stabilitylab.studies.study import Study, look_up

PAGE = "README.md"
_REGIME = {
    "data.name": "data", "model.img_size": "pixels", "model.patch_size": "patch", "model.embed_dim": "width",
    "model.depth": "depth", "method.name": "method", "method.temperature": "temperature",
    "method.head_bn": "BatchNorm in the heads", "optim.name": "optimizer", "optim.weight_decay": "weight decay",
    "optim.beta2": "beta2", "optim.warmup_iterations": "warm-up", "optim.schedule": "schedule",
    "train.batch_size": "batch", "train.iterations": "iterations",
}  # fmt: skip


def write_page(study: Study, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write ``README.md`` to ``folder`` from the summary in this folder."""
    about = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    machines = about.get("machines") or ["a machine that was not recorded"]
    commits = ", ".join(commit[:10] for commit in about["trained_at_commits"]) or "an unknown commit"
    rule = ""
    if study.looks:
        looks = ", ".join(map(str, study.looks))
        rule = (
            f" Seeds are added until every claim is decided, {study.looks[-1]} at most; looks at {looks} seeds, "
            "and their intervals are wider so that all looks together are wrong in at most 5% of the studies."
        )
    lines = [
        f"# {study.title}",
        "",
        f"`{about['command']}`: {len(rows)} runs, {about['training_hours']:g} hours of training steps on "
        f"{', '.join(machines)}; trained at {commits}.{rule}",
        "",
        *([f"The paper: {study.paper}", ""] if study.paper else []),
        f"Regime: {_regime(study)}. What varies: {_varied(study)}.",
        "",
        "| claim | metric | difference [interval] | smallest | seeds | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for decided in verdicts(study, [dict(row) for row in rows]):
        seen = "no value" if decided.difference is None else f"{decided.difference:+.3g}"
        if decided.interval is not None:
            seen += f" [{decided.interval[0]:.3g}, {decided.interval[1]:.3g}]"
            seen += "" if decided.level == LEVEL else f" at {100 * decided.level:.4g}%"
        claim = decided.claim
        cells = (
            claim.text,
            claim.metric,
            seen,
            f"{claim.smallest:g}",
            str(decided.num_seeds),
            _verdict(study, decided),
        )
        lines.append(f"| {' | '.join(cells)} |")
    write_atomically(folder / PAGE, "\n".join([*lines, *_lags(folder), ""]).encode())


def _verdict(study: Study, decided: Verdict) -> str:
    if is_open(study, decided):
        return "**open**: seeds are left"
    later = decided.claim.follow_up if decided.verdict == "inconclusive" else ""
    return f"**{decided.verdict}**" + (f"; asked again: [{later}](../{later}/)" if later else "")


def _regime(study: Study) -> str:
    """The settings that all runs have in common."""
    parts = []
    for key, name in _REGIME.items():
        values = {str(look_up(run.config, key)) for run in study.runs}
        if len(values) == 1 and values != {"None"}:  # otherwise the architecture sets it
            parts.append(f"{name} {values.pop()}")
    rates = {f"{r.config.optim.base_lr * r.config.train.batch_size / 256:.4g}" for r in study.runs}
    parts.append(f"learning rate {' or '.join(sorted(rates, key=float))} (base_lr x batch / 256)")
    return ", ".join(parts)


def _varied(study: Study) -> str:
    keys = sorted({key for run in study.runs for key in run.axes})
    parts = []
    for key in keys:
        values = list(dict.fromkeys(str(look_up(run.config, key)) for run in study.runs))
        if len(values) > 1:
            parts.append(f"{key} ({', '.join(values) if key != 'train.seed' else f'{len(values)} at most'})")
    return ", ".join(parts) or "nothing but the seed"


def _lags(folder: Path) -> list[str]:
    try:
        with (folder / LAGS).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    drawn = any(row["low"] and row["high"] for row in rows)
    lines = [
        "",
        "## The lag behind the first layer, all runs of a group together",
        "",
        "Iterations from a spike of the source to the matching one of the layer; the interval resamples runs; p: how "
        "often shifted spikes match as well. `lags.csv` has the reasons.",
        "",
        *(["![Lag of each layer behind the first one, with intervals](lags.png)", ""] if drawn else []),
        "| group | source | layer | lag | 95% | p | matched spikes | runs with a match | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        interval = f"{row['low']} to {row['high']}" if row["low"] else ""
        cells = (row["group"], row["source"], row["target"], row["median_iterations"], interval, row["p_value"])
        counts = (row["num_matched"], f"{row['num_runs']} of {row['num_given']}", row["verdict"])
        lines.append(f"| {' | '.join([*cells, *counts])} |")
    return lines
