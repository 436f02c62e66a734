"""Draw the pooled lags of a study: the lag of each layer behind the first layer by depth, for each group."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from stabilitylab.errors import ConfigError
from stabilitylab.report.writing import write_atomically
from stabilitylab.studies.collect import LAGS

FIGURE = "lags.png"
_COLOURS = ("#8c2d04", "#2166ac", "#1b7837", "#762a83", "#b8860b", "#555555")


def draw_lags(folder: Path, title: str) -> None:
    """Draw ``lags.png`` from ``lags.csv`` in ``folder``: median, interval and number of matched spikes. Layers
    with too few matches are left out. Does nothing if no layer has a lag."""
    try:
        with (folder / LAGS).open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["low"] and row["high"]]
    except FileNotFoundError:
        return
    if not rows:
        return
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(row["target"] for row in rows))
    groups = list(dict.fromkeys(row["group"] for row in rows))
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots()
    axes.axhline(0, color="#999999", lw=0.8)
    for number, group in enumerate(groups):
        mine = [row for row in rows if row["group"] == group]
        shift = (number - (len(groups) - 1) / 2) * 0.18
        x = [layers.index(row["target"]) + shift for row in mine]
        lag = [float(row["median_iterations"]) for row in mine]
        below = [middle - float(row["low"]) for middle, row in zip(lag, mine, strict=True)]
        above = [float(row["high"]) - middle for middle, row in zip(lag, mine, strict=True)]
        label = f"{group}, behind {mine[0]['source']}"
        colour = _COLOURS[number % len(_COLOURS)]
        axes.errorbar(x, lag, [below, above], fmt="o", color=colour, ms=4, capsize=3, lw=1.2, label=label)
        for at, middle, high, row in zip(x, lag, above, mine, strict=True):
            text = f"n={row['num_matched']}"
            axes.annotate(text, (at, middle + high), (0, 3), textcoords="offset points", fontsize=6, ha="center")
    axes.set_xticks(range(len(layers)), layers, fontsize=7)
    axes.set_ylabel("lag (iterations), 95%", fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    try:
        write_atomically(folder / FIGURE, drawn.getvalue())
    except OSError as error:
        raise ConfigError(f"cannot write {folder / FIGURE}: {error.strerror}") from None
