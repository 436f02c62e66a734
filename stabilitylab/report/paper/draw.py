"""Draw a chart on a matplotlib axis, distinguishable without colour and readable at column width."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from stabilitylab.report.downsample import heat_rows, min_max
from stabilitylab.report.html.plotting import COLOURS
from stabilitylab.report.marks import Band, Bars, Chart, Drawing, Heat, Line, Outline, Points

DASHES = ("-", "--", ":", "-.", (0, (7, 2)), (0, (7, 2, 1, 2)))
SYMBOLS = ("v", "D", "s", "o", "P", "*")
# Monotonic in lightness, so that it is readable in greyscale.
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#fde0a8", "#f2924b", "#c43c4e", "#4a1260"])
_COLUMNS, _BINS = 400, 500
_WIDTHS = {"curve": 1.0, "seed": 0.4, "mean": 1.4}


def draw(axis: Axes, chart: Chart, *, legend: Any = None, width: float = 1.0, **options: Any) -> None:
    """Draw a chart on ``axis``. ``legend``: its location, or None; ``options`` are passed to matplotlib's legend.
    ``width`` scales the line width of curves."""
    drawing = _Drawing(axis, chart, width)
    for mark in chart.marks:
        drawing.add(mark)
    axis.set(xlabel=chart.x.title, ylabel=chart.y.title)
    drawing.arrange(chart)
    if legend is not None and drawing.handles:
        axis.legend(handles=list(drawing.handles.values()), loc=legend, **options)
    if chart.note:
        axis.set_title("\n".join(short(line, 60) for line in chart.note), fontsize=6.5)


class _Drawing(Drawing):
    def __init__(self, axis: Axes, chart: Chart, width: float) -> None:
        self.axis, self.width = axis, width
        self.rows = bool(chart.y.names)
        self.several = {(m.label, m.style) for m in chart.marks if isinstance(m, Line) and m.role == "seed"}
        self.handles: dict[tuple[str, int], Any] = {}

    def draw_line(self, mark: Line) -> None:
        colour, dash = COLOURS[mark.style % 6], DASHES[mark.style % 6]
        if mark.role == "join":
            self.axis.plot(mark.x, mark.y, color="#999999", lw=0.5, zorder=1)
            return
        if mark.role == "span":
            self.axis.plot(mark.x, mark.y, color=colour, lw=4, alpha=0.2, solid_capstyle="butt", zorder=1)
            return
        if mark.role == "chance":
            steps = self.axis.stairs(
                np.asarray(mark.y), np.asarray(mark.x), color=colour, ls="--", lw=1.0, label=mark.label
            )
            self.handles[mark.label, mark.style] = steps
            return
        if mark.role == "mean" and not mark.hover:  # a bar among points
            self.axis.plot(mark.x, mark.y, color="black", lw=1.2)
            return
        x, y = np.asarray(mark.x), np.asarray(mark.y, dtype=np.float64)
        seed = mark.role == "seed"
        style: dict[str, Any] = {"color": colour, "ls": dash, "lw": _WIDTHS[mark.role] * self.width}
        self.axis.plot(*min_max(x, y, _BINS), alpha=0.55 if seed else 1.0, **style)
        label = short(mark.label) + (f" ({mark.note})" if mark.note else "")
        handle = Line2D([], [], **(style | {"lw": 1.4 if mark.note else style["lw"]}), label=label)
        self.handles.setdefault((mark.label, mark.style), handle)

    def draw_points(self, mark: Points) -> None:
        colour, symbol = COLOURS[mark.style % 6], SYMBOLS[mark.style % 6]
        if mark.hollow:
            self.axis.plot(mark.x, mark.y, "o", ms=2.2, mfc="none", mec="black", mew=0.4)
            return
        if mark.low:
            for low, high, y in zip(mark.low, mark.high, mark.y, strict=True):
                self.axis.plot((low, high), [y, y], color=colour, lw=1.0, solid_capstyle="butt")
            self.axis.plot(mark.x, mark.y, "o", color=colour, ms=3)
            return
        if mark.what == "dips" and (mark.label, mark.style) in self.several:
            return  # no room for the dips of several seeds
        size = {"spikes": 4.0, "dips": 4.5}.get(mark.what, 3.2)
        self.axis.plot(mark.x, mark.y, symbol, color=colour, ms=size, mec="white", mew=0.4, zorder=3)

    def draw_heat(self, mark: Heat) -> None:
        edges, cells = heat_rows(mark.layers, _COLUMNS)
        rows = np.arange(len(mark.layers) + 1) - 0.5
        filled = np.clip(cells, 0, None)
        image = self.axis.pcolormesh(edges, rows, filled, cmap=HEAT, vmin=0, vmax=1.5, rasterized=True)
        self.axis.grid(visible=False)
        assert self.axis.figure is not None
        bar = self.axis.figure.colorbar(image, ax=self.axis, ticks=[0, 0.5, 1, 1.5], pad=0.01, aspect=15)
        bar.set_label("ratio to usual norm")
        bar.ax.set_yticklabels(["1x", "3x", "10x", "30x"])
        bar.outline.set_linewidth(0.4)

    def draw_outline(self, mark: Outline) -> None:
        width, height = mark.last - mark.first, mark.bottom - mark.top + 1
        box = Rectangle((mark.first, mark.top - 0.5), width, height, fill=False, lw=0.7, ec="black", zorder=3)
        self.axis.add_patch(box)
        if mark.number:
            self.axis.annotate(
                mark.number, (mark.first + width / 2, -0.5), (0, 1), textcoords="offset points", ha="center",
                va="bottom", fontsize=5.5, annotation_clip=False,
            )  # fmt: skip

    def draw_bars(self, mark: Bars) -> None:
        middle, width = (mark.edges[:-1] + mark.edges[1:]) / 2, float(mark.edges[1] - mark.edges[0])
        colour = COLOURS[mark.style % 6]
        bars = self.axis.bar(middle, mark.shares, 0.88 * width, color=colour, ec="black", lw=0.3, label=mark.label)
        self.handles[mark.label, mark.style] = bars

    def draw_band(self, mark: Band) -> None:
        self.axis.axvspan(mark.low, mark.high, color=COLOURS[mark.style % 6], alpha=0.15, lw=0)

    def arrange(self, chart: Chart) -> None:
        axis, x, y = self.axis, chart.x, chart.y
        if y.names:
            every = max(1, len(y.names) // 16) if any(isinstance(m, Heat) for m in chart.marks) else 1
            axis.set_yticks(range(0, len(y.names), every), [short(name) for name in y.names][::every])
            axis.invert_yaxis()
        elif x.title == "iteration":
            axis.margins(x=0.01)
        if y.log:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(numticks=6))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        if x.log:
            axis.set_xscale("log")
        if x.ticks:
            labels = [short(label, 16) for _, label in x.ticks]
            axis.set_xticks([value for value, _ in x.ticks], labels, minor=False)
            axis.set_xticks([], minor=True)
        if x.beside is not None:
            title, ticks = x.beside
            top = axis.secondary_xaxis("top")
            top.set_xticks([value for value, _ in ticks], [label for _, label in ticks])
            top.set_xlabel(title)
        if x.zero_line:
            axis.axvline(0, color="black", lw=0.5)


def short(name: str, most: int = 28) -> str:
    """A name on one line, truncated to ``most`` characters."""
    one_line = " ".join(name.split())
    return one_line if len(one_line) <= most else one_line[: most - 1] + "\u2026"
