"""The rows of the report's tables as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stabilitylab.analysis.results import Dip, RunAnalysis, RunSeries
from stabilitylab.analysis.sentences import largest
from stabilitylab.comparison.arms import lr_label, mitigation_label
from stabilitylab.comparison.results import Comparison, Effect, RunSummary
from stabilitylab.report.charts import numbered, outlined
from stabilitylab.report.metric import MetricText


@dataclass(frozen=True, slots=True)
class Form:
    """How a column of a comparison is formatted: its title, the factor to the displayed unit, the unit, and the number
    of decimals (None: four significant digits)."""

    title: str
    factor: float
    unit: str
    decimals: int | None

    def number(self, value: float, sign: str = "") -> str:
        return (
            f"{self.factor * value:{sign}.4g}"
            if self.decimals is None
            else f"{self.factor * value:{sign}.{self.decimals}f}"
        )


METRICS = {
    "spikes_per_10k": Form("spikes per 10,000 iterations and layer", 1.0, "", 1),
    "diverged": Form("runs that diverged", 100.0, "%", 0),
    "spike_score": Form("spike score (values 7 sd above the last 1,000)", 100.0, "%", 3),
}


def _form(column: str, metric: MetricText) -> Form:
    if column in METRICS:
        return METRICS[column]
    share = metric.metric.share
    dip = "dip" if metric.higher else "rise"
    if column == "dip_area":
        return Form(
            f"{dip} area{', points' if share else ''} x iterations", 100.0 if share else 1.0, "", 0 if share else None
        )
    if column == "max_dip_depth":
        return Form(run_titles(metric)[3], 100.0 if share else 1.0, "", 1 if share else None)
    which = column.partition("_")[0]
    name = "kNN top-1" if metric.metric.name == "knn_top1" else metric.label
    return Form(f"{which} {name}", metric.factor, "%" if share else "", 1 if share else None)


def key_numbers(series: RunSeries, analysis: RunAnalysis) -> list[tuple[str, str]]:
    """(label, value) of the key figures of a run."""
    rows = [("iterations", f"{series.iterations:,}")]
    if series.consumed is not None:
        rows.append((series.consumed[0], f"{series.consumed[2][-1]:,.0f}"))
    metric = MetricText.of([analysis])
    values = metric.values(series)
    if len(values):
        rows.append((f"final {metric.short}", metric.value(float(values[-1]))))
        rows.append((f"best {metric.short}", metric.value(metric.best(values))))
    if analysis.spikes is not None:
        spikes = [s for s in analysis.spikes if s.kind == "spike"]
        rows.append(("spikes", "not judged" if analysis.spikes_unjudged else str(len(spikes))))
        if analysis.false_alarms is not None and not analysis.spikes_unjudged:
            rows.append(("by chance", f"{analysis.false_alarms.expected:.2g}"))
        top = largest(spikes)
        if top is not None:
            rows.append(("largest", f"{top.ratio:.0f}x"))
    if analysis.lag is not None:
        lag = analysis.lag
        if lag.median_iterations is not None and lag.ci95 is not None:
            rows.append(("lag, iterations", f"{lag.median_iterations:g} ({lag.ci95[0]:g} to {lag.ci95[1]:g})"))
        rows.append(("order of layers", lag.verdict))
    dip = "dip" if metric.higher else "rise"
    rows.append((f"{dip}s", "not judged" if analysis.dips is None else str(len(analysis.dips))))
    if analysis.dips:
        rows.append((f"largest {dip}", metric.depth(max(d.depth for d in analysis.dips))))
    return rows


def layer_rows(series: RunSeries, analysis: RunAnalysis) -> list[dict[str, str]]:
    """One row per layer: number of spikes, first and largest spike, lag behind the first layer."""
    lags = {row.layer: row for row in analysis.propagation or ()}
    rows = []
    for layer in series.layers:
        spikes = [s for s in analysis.spikes or () if s.layer == layer.name and s.kind == "spike"]
        top = largest(spikes)
        lag = lags.get(layer.name)
        rows.append(
            {
                "layer": layer.name,
                "spikes": "frozen" if not layer.trainable else "" if analysis.spikes_unjudged else str(len(spikes)),
                "first": str(spikes[0].onset) if spikes else "",
                "largest": f"{top.ratio:.1f}x at {top.peak}" if top else "",
                "lag": f"{lag.median_lag:g}" if lag and lag.median_lag is not None else "",
                "matched": str(lag.num_matched) if lag else "",
            }
        )
    return rows


def dip_rows(analysis: RunAnalysis) -> list[dict[str, str]]:
    """One row per dip."""
    return [
        {
            "start": str(d.start) if d.earliest == d.start else f"{d.began_after} to {d.start}",
            "trough": str(d.trough),
            "recovered": _recovered(d),
            "depth": f"{100 * d.depth:.1f}",
            "z": f"{d.z:.1f}",
            "after": _after(d),
        }
        for d in analysis.dips or ()
    ]


def _recovered(dip: Dip) -> str:
    if dip.recovered is None:
        return "not yet"
    between = dip.down_until is not None and dip.down_until + 1 < dip.recovered
    return f"{dip.down_until} to {dip.recovered}" if between else str(dip.recovered)


def _after(dip: Dip) -> str:
    """The spike that the dip is linked to, and whether the evaluations determine which came first."""
    if dip.after_spike is None:
        return ""
    unknown = "" if dip.order_known else " (the order cannot be resolved)"
    return f"{dip.after_spike.layer} at {dip.after_spike.onset}{unknown}"


def episode_rows(analysis: RunAnalysis, most: int = 40) -> list[dict[str, str]]:
    """One row per episode with several layers, sorted by start: the ``most`` episodes with the most layers. Numbers are
    as in the chart."""
    episodes = analysis.episodes or ()
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


def run_titles(metric: MetricText) -> tuple[str, str, str, str]:
    """Titles of the columns final, best, spikes and dip of `run_rows`."""
    unit = ", %" if metric.metric.share else ""
    depth = {"log": " (log)", "value": ""}.get(metric.metric.scale, ", points")
    largest_dip = f"{'deepest dip' if metric.higher else 'largest rise'}{depth}"
    return f"final {metric.short}{unit}", f"best {metric.short}{unit}", "spikes per 10,000", largest_dip


def run_rows(summaries: Sequence[RunSummary], statuses: Sequence[str], metric: MetricText) -> list[dict[str, str]]:
    """One row per run of a comparison."""
    depth = _form("max_dip_depth", metric)

    def shown(form: Form, value: float | None) -> str:
        return "" if value is None else form.number(value)

    def written(value: float | None) -> str:
        return "" if value is None else metric.number(value)

    return [
        {
            "run": s.run,
            "mitigation": mitigation_label(s.mitigation),
            "lr": lr_label(s.base_lr),
            "seed": str(s.seed),
            "final": written(s.value(metric.final_column)),
            "best": written(s.value(metric.final_column.replace("final_", "best_", 1))),
            "spikes": shown(METRICS["spikes_per_10k"], s.spikes_per_10k),
            "dip": shown(depth, s.max_dip_depth) if s.metric == metric.metric.name else "",
            "status": "diverged" if s.diverged else status,
        }
        for s, status in zip(summaries, statuses, strict=True)
    ]


def rate_rows(summaries: Sequence[RunSummary], metric: MetricText) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The learning rates, and for each mitigation the mean final value at each rate with its lowest and highest
    seed."""
    known = [s for s in summaries if s.value(metric.final_column) is not None and lr_label(s.base_lr)]
    rates = sorted({s.base_lr for s in known})
    rows = []
    for name in sorted(dict.fromkeys(s.mitigation for s in known), key=lambda name: name != "none"):
        cells = []
        for rate in rates:
            matching = [s for s in known if s.mitigation == name and s.base_lr == rate]
            values = [value for s in matching if (value := s.value(metric.final_column)) is not None]
            low, high = (metric.number(end(values)) for end in (min, max)) if values else ("", "")
            spread = f" ({low} to {high}, n = {len(values)})" if len(values) > 1 else ""
            cells.append(f"{metric.number(float(np.mean(values)))}{spread}" if values else "")
        rows.append((mitigation_label(name), cells))
    return [lr_label(rate) for rate in rates], rows


def effect_rows(comparison: Comparison) -> list[dict[str, str]]:
    """One row per effect, in the unit of the metric, with interval, p-value, seeds and a warning."""
    metric = MetricText.of_comparison(comparison)
    return [_effect_row(effect, metric) for effect in comparison.effects]


def _effect_row(effect: Effect, metric: MetricText) -> dict[str, str]:
    form = _form(effect.metric, metric)
    title, unit, shown = form.title, form.unit, form.number

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
    """Column titles and rows of a table of the configuration keys that differ between runs; for one run, all keys.

    The columns are the runs, or the keys if there are fewer keys than runs.
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
