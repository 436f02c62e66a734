"""Draw the branches of a run, with and without a mitigation, in one figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stabilitylab.analysis.metrics import curve_of, metric_label
from stabilitylab.analysis.results import RunAnalysis, RunSeries
from stabilitylab.errors import ConfigError
from stabilitylab.report.writing import write_atomically
from stabilitylab.run.answers import answer_run
from stabilitylab.run.series import load_series
from stabilitylab.store.reader import open_run

_WAS, _WOULD = "#8c2d04", "#2166ac"


@dataclass(frozen=True)
class _Future:
    series: RunSeries
    analysis: RunAnalysis
    label: str
    branched_at: int
    colour: str


def draw_futures(paths: Sequence[Path], output: Path | str) -> None:
    """Draw the branches from `branch_run`, alternately without and with the mitigation: the gradient norm of the layer
    with the largest spike, and the judged metric. ``output`` is a .png or .svg. Raises ConfigError if it cannot be
    written."""
    from matplotlib.figure import Figure

    futures = [_read(path, colour) for path, colour in zip(paths, (_WAS, _WOULD) * (len(paths) // 2), strict=True)]
    layer = _shown_layer(futures)
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    gradient, accuracy = figure.subplots(2, sharex=True)
    metric = futures[0].analysis.metric
    factor = 100 if metric is not None and metric.scale == "fraction" else 1
    percent = " (%)" if metric is not None and metric.share else ""
    name = "kNN top-1" if metric is None or metric.name == "knn_top1" else metric_label(metric.name)
    axis = f"{name}{percent}"
    for index, future in enumerate(futures):
        label = future.label if index < 2 else None
        norm = next(x for x in future.series.layers if x.name == layer)
        gradient.plot(norm.iteration, norm.grad_norm, color=future.colour, lw=0.8, alpha=0.85, label=label)
        curve = None if metric is None else curve_of(future.series, metric)
        if curve is not None:
            values = factor * np.asarray(curve.value)
            accuracy.plot(curve.iteration, values, color=future.colour, lw=1.1, alpha=0.85, label=label)
    at = futures[0].branched_at
    for axes in (gradient, accuracy):
        axes.axvline(at, color="0.4", lw=0.8, ls=":")
        axes.spines[["top", "right"]].set_visible(False)
    gradient.annotate(f"branched at {at}", (at, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)
    gradient.set(yscale="log", ylabel=f"gradient norm, {layer}")
    accuracy.set(xlabel="iteration", ylabel=axis)
    accuracy.legend(frameon=False, fontsize=8, loc="lower right")
    drawn = io.BytesIO()
    try:
        figure.savefig(drawn, format=Path(output).suffix[1:].lower(), dpi=110)
        write_atomically(Path(output), drawn.getvalue())
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from None


def _read(path: Path, colour: str) -> _Future:
    analysis = answer_run(path, need_gradients=False).analysis
    with open_run(path) as reader:
        added = "+".join(reader.config.get("mitigation") or ()) or "as it was"
        return _Future(load_series(reader), analysis, added, int(reader.meta["branched_at"]), colour)


def _shown_layer(futures: Sequence[_Future]) -> str:
    """Choose among the layers trained in all branches: the one with the largest spike in the unchanged branches or, if
    there are no spikes, the one that rises highest above its median."""
    shared = set.intersection(*({x.name for x in f.series.layers if x.trainable} for f in futures))
    ratios: dict[str, float] = {}
    rises: dict[str, float] = {}
    for future in futures[::2]:
        for spike in future.analysis.spikes or ():
            if spike.onset >= future.branched_at and spike.layer in shared:
                ratios[spike.layer] = max(spike.ratio, ratios.get(spike.layer, 0.0))
        for layer in future.series.layers:
            after = layer.grad_norm[layer.iteration >= future.branched_at]
            after = after[np.isfinite(after)]
            if layer.name in shared and len(after):
                rise = float(after.max() / np.median(after))
                rises[layer.name] = max(rise, rises.get(layer.name, 0.0))
    chosen = ratios or rises
    return max(chosen, key=lambda name: chosen[name])
