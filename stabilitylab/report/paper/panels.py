"""The panels of the paper figures: each draws onto one matplotlib axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from stabilitylab.analysis.results import RunAnalysis
from stabilitylab.comparison.arms import Arm, lr_label, mitigation_label
from stabilitylab.comparison.results import Comparison, RunSummary
from stabilitylab.report.downsample import heat_rows, min_max
from stabilitylab.report.html.figures import numbered, outlined
from stabilitylab.report.html.plotting import COLOURS
from stabilitylab.report.html.side_by_side import mitigations
from stabilitylab.run.analysed import AnalysedRun, last_finite

_LINES = ("-", "--", ":", "-.", (0, (7, 2)), (0, (7, 2, 1, 2)))
_MARKS = ("v", "D", "s", "o", "P", "*")
# Light to dark throughout, so that it reads in grey.
_HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#fde0a8", "#f2924b", "#c43c4e", "#4a1260"])
_COLUMNS = 400


def knn(axis: Axes, runs: Sequence[AnalysedRun], arms: Sequence[Arm]) -> None:
    """kNN accuracy by arm, the paper's Figures 1, 2, 5 and 6: seeds thin, their mean thick, dips marked."""
    handles = []
    for arm in arms:
        colour, dash = COLOURS[arm.index % 6], _LINES[arm.index % 6]
        curves = [(runs[place].series.evals["knn_top1"], runs[place].analysis.dips or ()) for place in arm.members]
        several = len(curves) > 1
        for curve, dips in curves:
            axis.plot(
                curve.iteration, 100 * curve.value, color=colour, ls=dash,
                lw=0.4 if several else 1.0, alpha=0.55 if several else 1.0,
            )  # fmt: skip
            at = np.searchsorted(curve.iteration, [dip.trough for dip in dips])
            if len(at) and not several:
                axis.plot(
                    curve.iteration[at], 100 * curve.value[at], _MARKS[arm.index % 6], color=colour, ms=4.5,
                    mec="white", mew=0.5, zorder=3,
                )  # fmt: skip
        first = curves[0][0].iteration
        if several and all(np.array_equal(curve.iteration, first) for curve, _ in curves):
            axis.plot(first, 100 * np.mean([curve.value for curve, _ in curves], axis=0), color=colour, ls=dash, lw=1.4)
        finals = [100 * (last_finite(curve.value) or 0.0) for curve, _ in curves]
        count = f", n = {len(finals)}" if several else ""
        label = f"{short(arm.label)} ({np.mean(finals):.1f} %{count})"
        handles.append(Line2D([], [], color=colour, ls=dash, lw=1.4, label=label))
    axis.set(xlabel="iteration", ylabel="kNN top-1, %")
    axis.margins(x=0.01)
    axis.legend(handles=handles, loc="lower right")


def spikes(axis: Axes, run: AnalysedRun) -> None:
    """Gradient norm of the first and the last trained layer, spikes marked: the paper's Figure 4."""
    layers = [layer for layer in run.trained_layers if len(layer.iteration)]
    for index, layer in enumerate([layers[0], layers[-1]] if len(layers) > 1 else layers):
        colour = COLOURS[index]
        norm = np.where(layer.grad_norm > 0, layer.grad_norm, np.nan)
        axis.plot(*min_max(layer.iteration, norm, 500), color=colour, ls=_LINES[index], lw=0.7, label=short(layer.name))
        peaks = [s.peak for s in run.analysis.spikes or () if s.layer == layer.name and s.kind == "spike"]
        at = np.searchsorted(layer.iteration, peaks)
        axis.plot(layer.iteration[at], norm[at], _MARKS[index], color=colour, ms=4, mec="white", mew=0.4, zorder=3)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(numticks=6))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="iteration", ylabel="gradient norm")
    axis.margins(x=0.01)
    axis.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, borderaxespad=0.1)


def heatmap(axis: Axes, run: AnalysedRun) -> None:
    """Every layer over iterations, in times its usual norm; episodes of several layers outlined and numbered."""
    layers = tuple(run.trained_layers)
    edges, cells = heat_rows(layers, _COLUMNS)
    rows = np.arange(len(layers) + 1) - 0.5
    image = axis.pcolormesh(edges, rows, np.clip(cells, 0, None), cmap=_HEAT, vmin=0, vmax=1.5, rasterized=True)
    axis.invert_yaxis()
    axis.grid(visible=False)
    every = max(1, len(layers) // 16)
    axis.set_yticks(range(0, len(layers), every), [short(layer.name) for layer in layers][::every])
    axis.set_xlabel("iteration")
    row = {layer.name: place for place, layer in enumerate(layers)}
    episodes = run.analysis.episodes or ()
    shown = numbered(episodes)
    for n, episode in outlined(episodes):
        inside = [row[layer] for layer, _ in episode.order if layer in row]
        width, height = episode.end - episode.start + 2, max(inside) - min(inside) + 1
        axis.add_patch(
            Rectangle((episode.start - 1, min(inside) - 0.5), width, height, fill=False, lw=0.7, ec="black", zorder=3)
        )
        if n in shown:
            axis.annotate(
                str(n), (episode.start + width / 2, -0.5), (0, 1), textcoords="offset points", ha="center",
                va="bottom", fontsize=5.5, annotation_clip=False,
            )  # fmt: skip
    found = [s for s in run.analysis.spikes or () if s.kind == "spike" and s.layer in row]
    axis.plot([s.onset for s in found], [row[s.layer] for s in found], "o", ms=2.2, mfc="none", mec="black", mew=0.4)
    assert axis.figure is not None
    bar = axis.figure.colorbar(image, ax=axis, ticks=[0, 0.5, 1, 1.5], pad=0.01, aspect=15)
    bar.set_label("times its usual norm")
    bar.ax.set_yticklabels(["1x", "3x", "10x", "30x"])
    bar.outline.set_linewidth(0.4)


def lag_histogram(axis: Axes, found: RunAnalysis) -> None:
    """Matched lags against what circular shifts give; the 95% interval of the median is shaded."""
    lag = found.lag
    assert lag is not None
    edges = np.arange(-102.5, 103, 5)
    counts = np.histogram(lag.lags, edges)[0]
    axis.bar(
        (edges[:-1] + edges[1:]) / 2, counts / max(counts.sum(), 1), 4.4, color=COLOURS[0], ec="black", lw=0.3,
        label="measured",
    )  # fmt: skip
    if lag.null_lags:
        null = np.histogram(lag.null_lags, edges)[0]
        axis.stairs(null / max(null.sum(), 1), edges, color=COLOURS[1], ls="--", lw=1.0, label="chance alone")
    if lag.ci95 is not None:
        axis.axvspan(*lag.ci95, color=COLOURS[0], alpha=0.15, lw=0)
    axis.set(xlabel=f"iterations from {short(lag.source)} to {short(lag.target)}", ylabel="share of matched spikes")
    axis.legend(loc="upper left")


def depth_against_lag(axis: Axes, found: RunAnalysis) -> None:
    """Median lag of each layer behind the first, with its interval: a travelling wave is a slope."""
    rows = [row for row in found.propagation or () if row.median_lag is not None and row.ci95 is not None]
    for place, row in enumerate(rows):
        assert row.ci95 is not None
        axis.plot(row.ci95, [place, place], color=COLOURS[0], lw=1.0, solid_capstyle="butt")
        axis.plot([row.median_lag or 0.0], [place], "o", color=COLOURS[0], ms=3)
    if not rows:
        axis.text(0.5, 0.5, "fewer than 5 matched spikes\nin every other layer", ha="center", transform=axis.transAxes)
    axis.set_yticks(range(len(rows)), [short(row.layer) for row in rows])
    axis.invert_yaxis()
    axis.axvline(0, color="black", lw=0.5)
    axis.set_xlabel("median lag, iterations")


def finals(axis: Axes, runs: Sequence[AnalysedRun], arms: Sequence[Arm], comparison: Comparison) -> None:
    """Final kNN of every run by arm, runs of one seed and learning rate joined; the effects in words."""
    final = {s.run: s.final_knn for s in comparison.runs}
    places: dict[tuple[int, str], list[tuple[int, float]]] = {}
    for x, arm in enumerate(arms):
        for place in arm.members:
            value = final[runs[place].series.run]
            if value is not None:
                places.setdefault((runs[place].named.seed, lr_label(runs[place].named.base_lr)), []).append(
                    (x, 100 * value)
                )
    for points in places.values():
        axis.plot(*zip(*points, strict=True), color="#999999", lw=0.5, zorder=1)
    for x, arm in enumerate(arms):
        values = [y for points in places.values() for at, y in points if at == x]
        axis.plot([x] * len(values), values, _MARKS[arm.index % 6], color=COLOURS[arm.index % 6], ms=3.5)
        if len(values) > 1:
            axis.plot([x - 0.16, x + 0.16], [np.mean(values)] * 2, color="black", lw=1.2)
    axis.set_xticks(range(len(arms)), [short(arm.label, 16) for arm in arms], rotation=20 if len(arms) > 2 else 0)
    axis.set_xlim(-0.5, len(arms) - 0.5)
    axis.set_ylabel("final kNN top-1, %")
    said = [
        f"{short(e.mitigation, 16)}: {100 * e.difference:+.1f} "
        + (f"(95%: {100 * e.ci95[0]:+.1f} to {100 * e.ci95[1]:+.1f})" if e.ci95 else "(no interval)")
        for e in comparison.effects
        if e.metric == "final_knn"
    ]
    axis.set_title("\n".join(said), fontsize=6.5)


def lr_sensitivity(axis: Axes, summaries: Sequence[RunSummary]) -> None:
    """Final kNN against the base learning rate: a mark a run, a line through each mitigation's means."""
    for index, name in enumerate(mitigations(summaries)):
        mine = [s for s in summaries if s.mitigation == name and s.final_knn is not None and s.base_lr > 0]
        rates = sorted({s.base_lr for s in mine})
        means = [100 * np.mean([s.final_knn for s in mine if s.base_lr == rate]) for rate in rates]
        style: dict[str, Any] = {"color": COLOURS[index % 6], "marker": _MARKS[index % 6]}
        axis.plot(
            [s.base_lr for s in mine], [100 * (s.final_knn or 0.0) for s in mine], ls="", ms=3, alpha=0.6, **style
        )
        label = short(mitigation_label(name))
        axis.plot(rates, means, ls=_LINES[index % 6], ms=4.5, mec="white", mew=0.4, label=label, **style)
    rates = sorted({s.base_lr for s in summaries if s.base_lr > 0})
    axis.set_xscale("log")
    axis.set_xticks(rates, [lr_label(rate) for rate in rates], minor=False)
    axis.set_xticks([], minor=True)
    axis.set(xlabel="base learning rate", ylabel="final kNN top-1, %")
    axis.legend(loc="best")


def short(name: str, most: int = 28) -> str:
    """A name on one line of a figure."""
    one_line = " ".join(name.split())
    return one_line if len(one_line) <= most else one_line[: most - 1] + "\u2026"
