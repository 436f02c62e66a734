"""Pictures of experiments, for the run's folder and the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from stabilitylab.cause.impulse import LOSS, Impulse


def draw_matrices(impulses: Mapping[str, Impulse], path: Path) -> None:
    """For each of several settings a row, for each kicked layer a panel: responding layers from input (top) to output,
    iterations from the kick on, the mean twin difference in colour. A dot marks an arrival."""
    layers = list(dict.fromkeys(name for impulse in impulses.values() for name in impulse.differences))
    size = (1.2 + 2.4 * len(layers), 0.7 + 2.1 * len(impulses))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(impulses), len(layers), squeeze=False, sharex=True)
    # The kicked layer's own answer may be far larger than the others': it must not flatten them.
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
