"""Plots of experiments, for the folder of the run and for the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from stabilitylab.cause.impulses import LOSS, Impulse
from stabilitylab.cause.sharpness import ALL, Sharpness
from stabilitylab.cause.swap import Swap
from stabilitylab.store.reader import open_run


def draw_matrices(impulses: Mapping[str, Impulse], path: Path) -> None:
    """One row of panels per setting, one panel per kicked layer.

    A panel shows the responding layers from input (top) to output over the iterations after the kick; the colour is the
    mean log ratio. A dot marks the arrival.
    """
    layers = list(dict.fromkeys(name for impulse in impulses.values() for name in impulse.differences))
    size = (1.2 + 2.4 * len(layers), 0.7 + 2.1 * len(impulses))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(impulses), len(layers), squeeze=False, sharex=True)
    # Limit the colour scale: the kicked layer's own response may be far larger than the others.
    means = [r.mean for i in impulses.values() for r in i.responses if r.kicked != r.responding]
    top = float(np.quantile(np.abs(np.concatenate(means)), 0.995)) if means else 1.0
    top = max(top, 1e-6)
    image = None
    for row, (name, impulse) in enumerate(impulses.items()):
        for column, kicked in enumerate(layers):
            axes = grid[row, column]
            chosen = [r for r in impulse.responses if r.kicked == kicked]
            if not chosen:
                axes.set_axis_off()
                continue
            field = np.stack([r.mean for r in chosen])
            image = axes.imshow(field, aspect="auto", cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
            for place, r in enumerate(chosen):
                if r.arrival is not None:
                    axes.plot(r.arrival, place, "k.", ms=3)
            axes.set_yticks(range(len(chosen)), [r.responding for r in chosen] if column == 0 else [], fontsize=6)
            axes.tick_params(axis="x", labelsize=6)
            if row == 0 or len(impulses) == 1:
                axes.set_title(f"kicked: {kicked}", fontsize=7)
            if column == 0 and len(impulses) > 1:
                axes.set_ylabel(name, fontsize=6)
            if row == len(impulses) - 1:
                axes.set_xlabel("iterations after the kick", fontsize=7)
    if image is not None:
        bar = figure.colorbar(image, ax=grid, shrink=0.8)
        bar.set_label(f"log ratio of gradient norm ({LOSS}: of the loss)", fontsize=7)
        bar.ax.tick_params(labelsize=6)
    figure.savefig(path, dpi=110)


def draw_swap(swap: Swap, path: Path) -> None:
    """One column of points per cell: the height of the norm in each repeat. The dashed line is half of the spike's
    height."""
    figure = Figure(figsize=(5.2, 2.6), layout="constrained")
    axes = figure.subplots()
    for place, cell in enumerate(swap.cells):
        heights = np.exp(np.minimum(cell.heights, 50))
        spread = np.linspace(-0.18, 0.18, len(heights)) if len(heights) > 1 else np.zeros(1)
        axes.plot(place + spread, heights, "o", ms=4, alpha=0.8, color="#8c2d04" if place in (0, 1) else "#2166ac")
    axes.axhline(np.exp(swap.cells[0].heights[0] / 2), color="0.4", lw=0.8, ls="--")
    axes.set_xticks(range(4), [f"{c.state},\n{c.data}\n{c.spiked} of {len(c.heights)}" for c in swap.cells], fontsize=7)
    axes.set(yscale="log")
    axes.set_ylabel(f"largest norm of {swap.layer},\ntimes usual", fontsize=7)
    axes.tick_params(axis="y", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def draw_sharpness(run_dir: Path, sharpness: Sharpness, path: Path) -> None:
    """Top: the largest eigenvalue relative to the edge of stability, for the whole model (thick) and by layer. Bottom:
    the gradient norms of the first and the last layer."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    layers = list(dict.fromkeys(c.layer for c in sharpness.curvatures))
    for name in layers:
        chosen = [c for c in sharpness.curvatures if c.layer == name]
        values = np.array([c.eigenvalue / (c.edge or 1) for c in chosen])
        errors = np.array([c.error / (c.edge or 1) for c in chosen])
        style = {"color": "k", "lw": 1.6, "zorder": 3} if name == ALL else {"lw": 0.7, "alpha": 0.8}
        top.errorbar([c.iteration for c in chosen], values, errors, marker=".", ms=4, label=name, **style)
    if any(c.edge for c in sharpness.curvatures):
        top.axhline(1, color="#8c2d04", lw=0.9, ls="--")
        top.set_ylabel("largest eigenvalue\n/ edge of stability", fontsize=8)
    else:
        top.set_ylabel("largest eigenvalue", fontsize=8)
    top.set_yscale("symlog", linthresh=0.1)
    top.legend(frameon=False, fontsize=6, ncols=4)
    with open_run(run_dir) as reader:
        series, rows = reader.layer_series(), [row for row in reader.layers() if row.trainable]
    for row in (rows[0], rows[-1]) if rows else ():
        if row.layer_id in series:
            bottom.plot(*series[row.layer_id], lw=0.7, label=row.name)
    first, last = (f(c.iteration for c in sharpness.curvatures) for f in (min, max))
    margin = max(last - first, 50) // 2
    bottom.set(yscale="log", xlabel="iteration", xlim=(first - margin, last + margin))
    bottom.set_ylabel("gradient norm", fontsize=8)
    bottom.legend(frameon=False, fontsize=6)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    figure.savefig(path, dpi=110)
