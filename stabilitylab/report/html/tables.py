"""Rows of the report's tables, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stabilitylab.analysis.results import RunAnalysis, RunSeries
from stabilitylab.analysis.sentences import largest
from stabilitylab.comparison.arms import lr_label, mitigation_label
from stabilitylab.comparison.results import Comparison, Effect, RunSummary
from stabilitylab.report.charts import numbered, outlined

# metric -> title, factor to the shown unit, unit, decimals
METRICS = {
    "final_knn": ("final kNN top-1", 100.0, "%", 1),
    "best_knn": ("best kNN top-1", 100.0, "%", 1),
    "spikes_per_10k": ("spikes per 10,000 iterations and layer", 1.0, "", 1),
    "dip_area": ("dip area, points x iterations", 100.0, "", 0),
    "max_dip_depth": ("deepest dip, points", 100.0, "", 1),
    "diverged": ("runs that diverged", 100.0, "%", 0),
    "spike_score": ("spike score (values 7 sd above the last 1,000)", 100.0, "%", 3),
}


def key_numbers(series: RunSeries, found: RunAnalysis) -> list[tuple[str, str]]:
    """Label and value of a run's figures at a glance."""
    rows = [("iterations", f"{series.iterations:,}")]
    curve = series.evals.get("knn_top1")
    if curve is not None and np.isfinite(curve.value).any():
        values = curve.value[np.isfinite(curve.value)]
        rows.append(("final kNN", f"{100 * values[-1]:.1f} %"))
        rows.append(("best kNN", f"{100 * values.max():.1f} %"))
    if found.spikes is not None:
        spikes = [s for s in found.spikes if s.kind == "spike"]
        rows.append(("spikes", str(len(spikes))))
        if found.false_alarms is not None:
            rows.append(("by chance", f"{found.false_alarms.expected:.2g}"))
        top = largest(spikes)
        if top is not None:
            rows.append(("largest", f"{top.ratio:.0f}x"))
    if found.lag is not None:
        lag = found.lag
        if lag.median_iterations is not None and lag.ci95 is not None:
            rows.append(("lag, iterations", f"{lag.median_iterations:g} ({lag.ci95[0]:g} to {lag.ci95[1]:g})"))
        rows.append(("order of layers", lag.verdict))
    if found.dips is not None and curve is not None:
        rows.append(("dips", str(len(found.dips))))
        if found.dips:
            rows.append(("deepest dip", f"{100 * max(d.depth for d in found.dips):.1f} points"))
    return rows


def layer_rows(series: RunSeries, found: RunAnalysis) -> list[dict[str, str]]:
    """One row a layer: spikes, first and largest, lag behind the first layer."""
    lags = {row.layer: row for row in found.propagation or ()}
    rows = []
    for layer in series.layers:
        spikes = [s for s in found.spikes or () if s.layer == layer.name and s.kind == "spike"]
        top = largest(spikes)
        lag = lags.get(layer.name)
        rows.append(
            {
                "layer": layer.name,
                "spikes": str(len(spikes)) if layer.trainable else "frozen",
                "first": str(spikes[0].onset) if spikes else "",
                "largest": f"{top.ratio:.1f}x at {top.peak}" if top else "",
                "lag": f"{lag.median_lag:g}" if lag and lag.median_lag is not None else "",
                "matched": str(lag.num_matched) if lag else "",
            }
        )
    return rows


def dip_rows(found: RunAnalysis) -> list[dict[str, str]]:
    """One row a dip."""
    return [
        {
            "start": str(d.start),
            "trough": str(d.trough),
            "recovered": "not yet" if d.recovered is None else str(d.recovered),
            "depth": f"{100 * d.depth:.1f}",
            "z": f"{d.z:.1f}",
            "after": f"{d.after_spike.layer} at {d.after_spike.onset}" if d.after_spike else "",
        }
        for d in found.dips or ()
    ]


def episode_rows(found: RunAnalysis, most: int = 40) -> list[dict[str, str]]:
    """One row an episode of several layers, by start; the farthest-reaching ``most``. The number is the chart's."""
    episodes = found.episodes or ()
    marked = numbered(episodes)
    farthest = sorted(outlined(episodes), key=lambda item: (-len(item[1].order), -item[1].z))[:most]
    return [
        {
            "number": f"{n}" if n in marked else "",
            "start": str(e.start),
            "end": str(e.end),
            "leader": e.leader,
            "then": ", ".join(f"{layer} +{onset - e.start}" for layer, onset in e.order[1:5])
            + (f", {len(e.order) - 5} more" if len(e.order) > 5 else ""),
            "reach": f"{100 * e.reach:.0f} %",
            "largest": f"{e.ratio:.1f}x in {e.peak_layer} at {e.peak}",
        }
        for n, e in sorted(farthest, key=lambda item: item[1].start)
    ]


def run_rows(summaries: Sequence[RunSummary], statuses: Sequence[str]) -> list[dict[str, str]]:
    """One row a run of a comparison."""

    def shown(metric: str, value: float | None) -> str:
        _, factor, _, decimals = METRICS[metric]
        return "" if value is None else f"{factor * value:.{decimals}f}"

    return [
        {
            "run": s.run,
            "mitigation": mitigation_label(s.mitigation),
            "lr": lr_label(s.base_lr),
            "seed": str(s.seed),
            "final": shown("final_knn", s.final_knn),
            "best": shown("best_knn", s.best_knn),
            "spikes": shown("spikes_per_10k", s.spikes_per_10k),
            "dip": shown("max_dip_depth", s.max_dip_depth),
            "status": "diverged" if s.diverged else status,
        }
        for s, status in zip(summaries, statuses, strict=True)
    ]


def rate_rows(summaries: Sequence[RunSummary]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Learning rates, and per mitigation the mean final kNN at each with its lowest and highest seed."""
    known = [s for s in summaries if s.final_knn is not None and lr_label(s.base_lr)]
    rates = sorted({s.base_lr for s in known})
    rows = []
    for name in sorted(dict.fromkeys(s.mitigation for s in known), key=lambda name: name != "none"):
        cells = []
        for rate in rates:
            values = [100 * (s.final_knn or 0.0) for s in known if s.mitigation == name and s.base_lr == rate]
            spread = f" ({min(values):.1f} to {max(values):.1f}, n = {len(values)})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}" if values else "")
        rows.append((mitigation_label(name), cells))
    return [lr_label(rate) for rate in rates], rows


def effect_rows(comparison: Comparison) -> list[dict[str, str]]:
    """One row an effect, in the metric's unit, with interval, p, seeds and a warning."""
    return [_effect_row(effect) for effect in comparison.effects]


def _effect_row(effect: Effect) -> dict[str, str]:
    title, factor, unit, decimals = METRICS[effect.metric]

    def shown(value: float, sign: str = "") -> str:
        return f"{factor * value:{sign}.{decimals}f}"

    return {
        "mitigation": effect.mitigation,
        "metric": title,
        "baseline": f"{shown(effect.baseline_mean)} {unit}".strip(),
        "mitigated": f"{shown(effect.mitigated_mean)} {unit}".strip(),
        "difference": shown(effect.difference, "+"),
        "interval": f"{shown(effect.ci95[0], '+')} to {shown(effect.ci95[1], '+')}" if effect.ci95 else "",
        "p": "" if effect.p_holm is None else f"{effect.p_holm:.3f}",
        "seeds": str(effect.num_seeds),
        "warning": effect.warning,
        "verdict": effect.verdict,
        "needed": "" if effect.seeds_needed is None else str(effect.seeds_needed),
    }


def config_differences(runs: Sequence[tuple[str, dict[str, Any]]]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Column titles and rows: keys on which the runs differ, with each run's value; for one run, every key.

    Whichever is fewer, runs or keys, lies across.
    """
    names = [name for name, _ in runs]
    flat = [_flatten(config) for _, config in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [(key, [values.get(key, "") for values in flat]) for key in keys]
    if len(runs) > 1:
        rows = [row for row in rows if len(set(row[1])) > 1]
    if rows and len(rows) < len(runs):
        turned = [(name, [values[place] for _, values in rows]) for place, name in enumerate(names)]
        return ["run", *(key for key, _ in rows)], turned
    return ["key", *names], rows


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            out |= _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            out[f"{prefix}{key}"] = ", ".join(map(str, value)) or "none"
        elif value is not None:
            out[f"{prefix}{key}"] = str(value)
    return out
