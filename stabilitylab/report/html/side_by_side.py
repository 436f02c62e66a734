"""Charts of several runs at once: one colour and dash an arm, seeds of an arm drawn alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stabilitylab.analysis.results import RunAnalysis, RunSeries
from stabilitylab.comparison.arms import Arm, lr_label, mitigation_label
from stabilitylab.comparison.results import RunSummary
from stabilitylab.report.downsample import min_max
from stabilitylab.report.html.plotting import COLOURS, DASHES, SYMBOLS, Figure, figure, line, points, text


def knn_curves(runs: Sequence[tuple[RunSeries, RunAnalysis]], arms: Sequence[Arm]) -> Figure:
    """kNN accuracy of every run, each dip's trough marked; its span is thickened where an arm is one run."""
    traces: list[Figure] = []
    shown: set[str] = set()
    for arm in arms:
        colour, symbol, label = COLOURS[arm.index % 6], SYMBOLS[arm.index % 6], text(arm.label)
        for series, analysis in (runs[place] for place in arm.members):
            curve = series.evals.get("knn_top1")
            if curve is None:
                continue
            dips = analysis.dips or ()
            trace = line(curve.iteration, 100 * curve.value, label, colour, DASHES[arm.index % 6], None)
            traces.append(_of_arm(trace, arm, shown, series.run, "%{y:.1f} % at %{x}"))
            for dip in dips if len(arm.members) == 1 else ():
                end = dip.recovered if dip.recovered is not None else int(curve.iteration[-1])
                inside = (curve.iteration >= dip.start) & (curve.iteration <= end)
                span = line(curve.iteration[inside], 100 * curve.value[inside], label, colour, "solid", None)
                traces.append(span | {"line": {"color": colour, "width": 8}, "opacity": 0.22, "showlegend": False})
            at = [int(np.flatnonzero(curve.iteration == dip.trough)[0]) for dip in dips]
            if at:
                marks = points(curve.iteration[at], 100 * curve.value[at], f"{label}: dips", colour, symbol)
                marks["text"] = [f"dip of {100 * d.depth:.1f} points, {d.z:.1f} standard errors" for d in dips]
                traces.append(_of_arm(marks, arm, shown, series.run, "%{text}"))
    return figure(traces, "iteration", "kNN top-1, %")


def loss_curves(losses: Sequence[tuple[str, np.ndarray, np.ndarray] | None], arms: Sequence[Arm]) -> Figure:
    """Training loss of every run that recorded one."""
    traces: list[Figure] = []
    shown: set[str] = set()
    for arm in arms:
        colour, dash = COLOURS[arm.index % 6], DASHES[arm.index % 6]
        for item in (losses[place] for place in arm.members):
            if item is not None:
                name, iteration, loss = item
                trace = line(*min_max(iteration, loss), text(arm.label), colour, dash, None)
                traces.append(_of_arm(trace, arm, shown, name, "%{y:.3f} at %{x}"))
    return figure(traces, "iteration", "loss")


def lr_sensitivity(summaries: Sequence[RunSummary]) -> Figure:
    """Final kNN against the base learning rate: a point a run, a line through each mitigation's means."""
    traces: list[Figure] = []
    for index, name in enumerate(mitigations(summaries)):
        mine = [s for s in summaries if s.mitigation == name and s.final_knn is not None and s.base_lr > 0]
        if not mine:
            continue
        colour, label = COLOURS[index % 6], text(mitigation_label(name))
        rates = sorted({s.base_lr for s in mine})
        means = [100 * float(np.mean([s.final_knn for s in mine if s.base_lr == rate])) for rate in rates]
        traces.append(line(rates, means, label, colour, DASHES[index % 6], "mean %{y:.1f} % at lr %{x}"))
        dots = points(
            [s.base_lr for s in mine], [100 * (s.final_knn or 0.0) for s in mine], label, colour, SYMBOLS[index % 6]
        )
        dots["text"] = [text(f"{s.run}: {100 * (s.final_knn or 0.0):.1f} %") for s in mine]
        traces.append(dots | {"showlegend": False})
    chart = figure(traces, "base learning rate", "final kNN top-1, %")
    rates = sorted({s.base_lr for s in summaries if s.base_lr > 0})
    chart["layout"]["xaxis"] |= {"type": "log", "tickvals": rates, "ticktext": [lr_label(rate) for rate in rates]}
    return chart


def mitigations(summaries: Sequence[RunSummary]) -> list[str]:
    """Each mitigation once, none first."""
    return sorted(dict.fromkeys(s.mitigation for s in summaries), key=lambda name: name != "none")


def several_rates(summaries: Sequence[RunSummary]) -> bool:
    """Whether there is a learning rate to be sensitive to."""
    return len({lr_label(s.base_lr) for s in summaries if not math.isnan(s.base_lr) and s.final_knn is not None}) > 1


def _of_arm(trace: Figure, arm: Arm, shown: set[str], run: str, hover: str) -> Figure:
    """An arm's traces share one entry in the legend; hovering names the run."""
    group = f"{arm.index} {trace['mode']}"
    thin = {"line": trace["line"] | {"width": 1.1}} if len(arm.members) > 1 and "line" in trace else {}
    legend = {"legendgroup": group, "showlegend": "line" in trace and group not in shown}
    shown.add(group)
    return trace | thin | legend | {"hovertemplate": f"{hover}<extra>{text(run)}</extra>", "hoverinfo": "all"}
