"""The results of a search: ``settings.csv`` with one row per setting, and a summary page."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stabilitylab.analysis.detection.spikes import false_alarms
from stabilitylab.analysis.results import RunAnalysis, RunSeries, chance_of
from stabilitylab.run.loading import load_run
from stabilitylab.run.provenance import provenance
from stabilitylab.store.reader import open_run
from stabilitylab.studies.collect import LEVEL_OVER
from stabilitylab.studies.search import Objective, Search, Setting
from stabilitylab.studies.study import look_up

TABLE, PAGE = "settings.csv", "README.md"
MORE_THAN_CHANCE = 0.01
PER = 3000
_VALUES = (
    "lr", "optim.weight_decay", "optim.beta2", "optim.warmup_iterations", "train.batch_size", "train.seed",
    "method.name", "method.temperature", "method.ema_momentum", "method.head_bn", "model.embed_dim", "model.depth",
    "model.img_size", "model.patch_size", "mitigation", "data.name", "data.crop_min",
)  # fmt: skip
COLUMNS = (
    "run", "source", "index", *_VALUES, "iterations", "objectives", "alive", "knn_untrained", "knn_end", "knn_max",
    "first_layer", "first_layer_spikes", "first_layer_chance", "first_layer_largest", "spikes", "chance", "p_value",
    "spikes_by_layer", "dips", "recovered", "deepest_dip", "lags", "stopped", "iterations_per_second", "hours",
    "git_commit", "analysed_at", "torch", "cpu", "cpu_capability",
)  # fmt: skip
Row = dict[str, Any]


def search_row(setting: Setting, run_dir: Path, objective: Objective) -> Row:
    """The row of a setting whose run has ended."""
    run = load_run(run_dir)
    series = run.series
    with open_run(run_dir) as reader:
        meta, status = reader.meta, reader.status
        seconds = reader.query("SELECT coalesce(sum(seconds), 0) FROM iterations").fetchone()
    spent = float(seconds[0]) if seconds else 0.0
    row: Row = {"run": setting.name, "source": setting.source, "index": setting.index}
    row |= _values_of(setting) | what_happened(series, run.analysis, ended_early=status == "stopped")
    row |= {
        "stopped": status if status != "finished" else "",
        "iterations_per_second": series.iterations / spent if spent else None,
        "hours": spent / 3600,
        "git_commit": meta.get("git_commit", "")[:10],
        "analysed_at": provenance()["git_commit"][:10],
        "torch": meta.get("torch_version", ""),
        "cpu": meta.get("cpu_model", ""),
        "cpu_capability": meta.get("cpu_capability", ""),
    }
    row["objectives"] = sum(met(row, objective).values())
    return {column: _short(row.get(column)) for column in COLUMNS}


def what_happened(series: RunSeries, analysis: RunAnalysis, *, ended_early: bool = False) -> Row:
    """Accuracy, spikes by layer and those expected by chance, dips, and the lag of each layer behind the first, written
    ``blocks.0 0 (24)``: median lag and number of matched spikes. ``ended_early``: by a non-finite loss."""
    lags = [lag for lag in (analysis.propagation or ())[1:] if lag.median_lag is not None]
    row: Row = {"iterations": series.iterations} | _accuracy(series, ended_early)
    row |= _spikes(series, analysis) | _dips(analysis)
    return row | {"lags": "; ".join(f"{lag.layer} {lag.median_lag:g} ({lag.num_matched})" for lag in lags)}


def _values_of(setting: Setting) -> Row:
    config = setting.config
    values = {key: look_up(config, key) for key in _VALUES if key != "lr"}
    return {"lr": config.optim.base_lr * config.train.batch_size / 256} | values


def _accuracy(series: RunSeries, ended_early: bool) -> Row:
    curve = series.evals.get("knn_top1")
    values = curve.value[np.isfinite(curve.value)] if curve is not None else np.array([])
    if not len(values):
        return {"alive": "not judged"}
    untrained, end = float(values[0]), float(np.median(values[-LEVEL_OVER:]))
    return {
        "alive": "dead" if ended_early or end < untrained else "yes",
        "knn_untrained": untrained,
        "knn_end": end,
        "knn_max": float(values.max()),
    }


def _spikes(series: RunSeries, analysis: RunAnalysis) -> Row:
    counts = Counter(spike.layer for spike in analysis.spikes or ())
    first = next((layer for layer in series.layers if layer.trainable and len(layer.iteration)), None)
    own = [spike for spike in analysis.spikes or () if first is not None and spike.layer == first.name]
    alarms = analysis.false_alarms
    return {
        "first_layer": first.name if first else "",
        "first_layer_spikes": len(own),
        "first_layer_chance": false_alarms([first], analysis.settings).expected if first else None,
        "first_layer_largest": max((spike.ratio for spike in own), default=0.0),
        "spikes": len(analysis.spikes or ()),
        "chance": alarms.expected if alarms else None,
        "p_value": alarms.p_value if alarms else None,
        "spikes_by_layer": "; ".join(f"{name} {counts[name]}" for name, _ in analysis.layers if counts[name]),
    }


def _dips(analysis: RunAnalysis) -> Row:
    dips = analysis.dips or ()
    return {
        "dips": len(dips),
        "recovered": sum(dip.recovered is not None for dip in dips),
        "deepest_dip": max((dip.depth for dip in dips), default=0.0),
    }


def met(row: Mapping[str, Any], objective: Objective) -> dict[str, bool]:
    """Which parts of the objective a row meets. A dead run has no accuracy. There must also be more spikes than by
    chance (Poisson, p < 0.01)."""

    def number(key: str) -> float:
        return float(row[key]) if row.get(key) not in (None, "") else float("nan")

    spikes, chance = int(row["first_layer_spikes"] or 0), number("first_layer_chance")
    beyond = PER * (spikes - chance) / max(number("iterations"), 1)
    return {
        "accuracy": row.get("alive") != "dead"
        and number("knn_end") - number("knn_untrained") >= objective.accuracy_gain,
        "first layer": beyond >= objective.first_layer_spikes and chance_of(spikes, chance) < MORE_THAN_CHANCE,
        "dips": number("recovered") >= objective.recovered_dips,
    }


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else value


def read_table(folder: Path) -> list[Row]:
    """The rows of the table; empty if nothing was tried."""
    try:
        with (folder / TABLE).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def write_table(search: Search, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write ``settings.csv`` and ``README.md``. Rows of settings that are no longer in the search stay, at the end."""
    order = {setting.name: i for i, setting in enumerate(search.settings)}
    by_name = {str(row["run"]): row for row in rows}
    kept = sorted(by_name.values(), key=lambda row: order.get(str(row["run"]), len(order)))
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{TABLE}.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
    part.replace(folder / TABLE)
    (folder / PAGE).write_text(search_page(search, read_table(folder)), encoding="utf-8")


_SHOWN = (
    ("source", "source"), ("lr", "lr"), ("optim.weight_decay", "wd"), ("optim.beta2", "beta2"),
    ("train.batch_size", "batch"), ("method.name", "method"), ("model.embed_dim", "width"), ("model.depth", "depth"),
    ("model.img_size", "pixels"), ("model.patch_size", "patch"), ("mitigation", "mitigation"), ("train.seed", "seed"),
    ("iterations", "iterations"), ("knn_untrained", "untrained kNN"), ("knn_end", "kNN at the end"),
    ("first_layer_spikes", "first layer's spikes"), ("spikes", "all spikes"), ("chance", "chance"),
    ("recovered", "dips that recover"), ("objectives", "objectives met"),
)  # fmt: skip
_TOP = 20


def search_page(search: Search, rows: Sequence[Mapping[str, Any]]) -> str:
    """The summary in Markdown: the objective, the settings tried, and those that came closest."""
    o = search.objective
    alive = [row for row in rows if row["alive"] == "yes"]
    parts = {name: sum(met(row, o)[name] for row in rows) for name in ("accuracy", "first layer", "dips")}
    hours = sum(float(row["hours"] or 0) for row in rows)
    machines = sorted({f"{row['cpu']} ({row['cpu_capability']})" for row in rows if row["cpu"]})
    commits = sorted({row["git_commit"] for row in rows if row["git_commit"]})
    analysed = sorted({row["analysed_at"] for row in rows if row.get("analysed_at")})
    whole = [row for row in rows if all(met(row, o).values())]
    lines = [
        f"# {search.title}",
        "",
        f"`stablab study --search {search.path.as_posix()}`: {len(rows)} of {len(search.settings)} settings tried, "
        f"{sum(int(row['iterations']) for row in rows):,} iterations, {hours:.1f} hours of steps on one core. "
        "`settings.csv` has one row per setting with its results; `series/` has the gradient norms of the leads by "
        "layer.",
        "",
        "A regime like the paper's must meet three objectives: a final kNN accuracy at least "
        f"{100 * o.accuracy_gain:g} points above that of the untrained encoder (met by {parts['accuracy']}), at least "
        f"{o.first_layer_spikes:g} spikes of the first layer per {PER:,} iterations more than expected by chance (met "
        f"by {parts['first layer']}), and recovery from at least {o.recovered_dips} accuracy dip(s) (met by "
        f"{parts['dips']}). **{len(whole)} of {len(rows)} settings meet all three.** In {len(rows) - len(alive)} "
        "settings, training is dead (the final accuracy is below that of the untrained encoder, or a non-finite loss "
        "ended the run) or was not judged.",
        "",
        f"Trained at {', '.join(commits) or 'an unknown commit'} on {', '.join(machines) or 'an unknown machine'}, one "
        f"thread; analysed at {', '.join(analysed) or 'an unknown commit'}.",
        "",
    ]
    for title, source in (("Leads", "lead"), (f"Random settings, the {_TOP} that came closest", "drawn")):
        chosen = [row for row in rows if row["source"] == source]
        if source == "drawn":
            chosen = sorted(chosen, key=lambda row: _nearness(row, o), reverse=True)[:_TOP]
        if chosen:
            lines += [f"## {title}", "", *_markdown(chosen), ""]
    return "\n".join(lines)


def _nearness(row: Mapping[str, Any], objective: Objective) -> tuple[int, bool, float]:
    rate = float(row["first_layer_spikes"] or 0) / max(int(row["iterations"]), 1)
    return sum(met(row, objective).values()), row["alive"] == "yes", rate


def _markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    head = [name for _, name in _SHOWN]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(str(row[key]) for key, _ in _SHOWN)} |" for row in rows]
