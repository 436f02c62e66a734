"""Draw the pictures of docs/analyse.md: planted series with the results of the analysis.

python docs/pictures.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.results import RunAnalysis
from stabilitylab.analysis.series import EvalCurve, LayerSeries, RunSeries

FOLDER = Path(__file__).parent / "pictures"
LAYERS = ("patch_embed", "blocks.0", "blocks.1", "blocks.2", "predictor")
ITERATIONS, LAG = 4000, 8
BLUE, ORANGE, GREY = "#3b6fb6", "#d1642a", "#8a8a8a"
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
    "svg.hashsalt": "docs",
    "axes.labelcolor": GREY, "xtick.color": GREY, "ytick.color": GREY, "text.color": GREY, "savefig.transparent": True,
}  # fmt: skip


def planted() -> RunSeries:
    """A run with spikes about every 300 iterations, which take five to eleven iterations from the first to the last
    layer, and an accuracy curve that dips after every third spike."""
    rng = np.random.default_rng(7)
    onsets = np.arange(350, 3800, 290) + rng.integers(-40, 40, 12)
    layers = []
    for depth, name in enumerate(LAYERS):
        log = rng.normal(0, 0.12, ITERATIONS) - 0.4 * depth + 0.2 * np.sin(np.arange(ITERATIONS) / 700)
        for onset in onsets:
            start = (
                onset
                + round(LAG * depth / (len(LAYERS) - 1))
                + (rng.integers(-3, 4) if depth == len(LAYERS) - 1 else 0)
            )
            log[start : start + 14] += 2.0 * np.exp(-np.arange(14) / 6)
        layers.append(LayerSeries(name, depth, np.arange(ITERATIONS), np.exp(log)))
    at = np.arange(0, ITERATIONS, 10)
    truth = 0.85 - 0.5 * np.exp(-at / 700)
    for onset in onsets[2::3]:
        truth[(at >= onset + 10) & (at < onset + 110)] -= 0.12
    accuracy = EvalCurve(at, rng.binomial(1000, truth) / 1000, np.full(len(at), 1000))
    return RunSeries("planted", ITERATIONS, tuple(layers), {"knn_top1": accuracy})


def spike(axis: Axes, run: RunSeries, found: RunAnalysis) -> None:
    layer = run.layers[0]
    first = next(s for s in found.spikes or () if s.layer == layer.name)
    shown = slice(first.onset - 150, first.onset + 150)
    x, y = layer.iteration[shown], layer.grad_norm[shown]
    usual = float(np.median(y))
    axis.semilogy(x, y, color=BLUE, lw=0.9)
    axis.plot(x[[0, -1]], [usual, usual], color=GREY, lw=0.9)
    axis.plot(x[[0, -1]], [2 * usual, 2 * usual], color=GREY, lw=0.9, ls="--")
    axis.axvspan(first.onset - 0.5, first.end + 0.5, color=ORANGE, alpha=0.2, lw=0)
    axis.plot([first.peak], [layer.grad_norm[first.peak]], "o", color=ORANGE, ms=4)
    axis.text(x[-1] + 5, usual, "usual level", va="center")
    axis.text(x[-1] + 5, 2 * usual, "twice the\nusual level", va="center")
    axis.annotate(
        f"peak: {first.ratio:.1f} times the usual level, {first.z:.0f} noise sd",
        (first.peak, layer.grad_norm[first.peak]), (first.peak + 12, layer.grad_norm[first.peak]), va="center",
        color=ORANGE,
    )  # fmt: skip
    axis.set(xlabel="iteration", ylabel=f"gradient norm, {layer.name}", xlim=(x[0], x[-1] + 55))
    axis.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 4, 8]))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())


def episode(axis: Axes, run: RunSeries, found: RunAnalysis) -> None:
    one = next(e for e in found.episodes or () if len(e.order) == len(LAYERS))
    shown = slice(one.start - 40, one.end + 60)
    for row, layer in enumerate(run.layers):
        log = np.log10(layer.grad_norm[shown])
        axis.plot(layer.iteration[shown], row + 0.75 * (log - np.median(log)), color=BLUE, lw=0.9)
    for name, onset in one.order:
        axis.plot([onset], [LAYERS.index(name)], "v", color=ORANGE, ms=5)
    axis.axvspan(one.start - 0.5, one.end + 0.5, color=ORANGE, alpha=0.15, lw=0)
    axis.set(xlabel="iteration", yticks=range(len(LAYERS)), yticklabels=LAYERS)
    axis.text(one.end + 4, len(LAYERS) - 0.4, f"leader: {one.leader}, reach: {one.reach:.0%}", color=ORANGE, va="top")


def lag(axis: Axes, run: RunSeries, found: RunAnalysis) -> None:
    assert found.lag is not None
    assert found.lag.ci95 is not None
    lags = np.asarray(found.lag.lags)
    bins = np.arange(lags.min() - 2.5, lags.max() + 3)
    axis.hist(lags, bins, color=BLUE, alpha=0.7)
    axis.axvspan(*found.lag.ci95, color=ORANGE, alpha=0.2, lw=0)
    axis.axvline(found.lag.median_iterations or 0, color=ORANGE)
    low, high = found.lag.ci95
    axis.set_title(
        f"{found.lag.verdict}: median {found.lag.median_iterations:g}, 95% interval {low:g} to {high:g}",
        color=ORANGE, fontsize=9,
    )  # fmt: skip
    axis.set(xlabel=f"iterations from {found.lag.source} to {found.lag.target}", ylabel="matched spikes")


def dip(axis: Axes, run: RunSeries, found: RunAnalysis) -> None:
    curve = run.evals["knn_top1"]
    axis.plot(curve.iteration, 100 * curve.value, color=BLUE, lw=0.9)
    for one in found.dips or ():
        axis.axvspan(one.start, one.recovered or ITERATIONS, color=ORANGE, alpha=0.2, lw=0)
    deepest = max(found.dips or (), key=lambda one: one.depth)
    value = 100 * curve.value[curve.iteration == deepest.trough][0]
    axis.annotate(
        f"{100 * deepest.depth:.0f} points, {deepest.z:.0f} standard errors", (deepest.trough, value),
        (deepest.trough - 120, value - 8), ha="right", color=ORANGE, arrowprops={"arrowstyle": "-", "color": ORANGE},
    )  # fmt: skip
    axis.set(xlabel="iteration", ylabel="kNN accuracy, %")


def main() -> None:
    run = planted()
    found = analyze_run(run)
    FOLDER.mkdir(exist_ok=True)
    for draw in (spike, episode, lag, dip):
        with plt.rc_context(STYLE):
            figure, axis = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
            draw(axis, run, found)
            figure.savefig(FOLDER / f"{draw.__name__}.svg", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
