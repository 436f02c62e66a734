"""The elements of a chart, independent of the drawing library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stabilitylab.analysis.series import LayerSeries


@dataclass(frozen=True)
class Axis:
    """``names``: one row per name, the first at the top. ``ticks``: (value, label); if empty, chosen by the drawing
    library. ``beside``: title and ticks of a second scale on the opposite side."""

    title: str
    log: bool = False
    names: tuple[str, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()
    zero_line: bool = False
    beside: tuple[str, tuple[tuple[float, str], ...]] | None = None


@dataclass(frozen=True)
class Line:
    """``style`` selects colour, dash and symbol. ``role``: ``curve``, ``seed`` (one of several curves with the same
    label), ``mean`` (of the seeds), ``span`` (a section to highlight), ``join`` (connects paired runs) or ``chance``
    (steps between the edges ``x``). ``hover`` is a plotly template, ``run`` the name shown with it; ``note`` is added
    to the label in print."""

    x: np.ndarray | Sequence[float]
    y: np.ndarray | Sequence[float]
    label: str
    style: int = 0
    role: str = "curve"
    hover: str = ""
    run: str = ""
    note: str = ""


@dataclass(frozen=True)
class Points:
    """Markers at (x, y). ``texts``: one per marker, shown on hover. ``low``, ``high``: intervals along x. ``hollow``:
    unfilled circles. ``label`` is that of the line they belong to; ``what`` names the marked feature."""

    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    label: str
    what: str = ""
    style: int = 0
    texts: tuple[str, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    hollow: bool = False
    run: str = ""


@dataclass(frozen=True)
class Heat:
    """A heat map of the norms of layers relative to their running medians; see `downsample.heat_rows`."""

    layers: tuple[LayerSeries, ...]


@dataclass(frozen=True)
class Outline:
    """A rectangle over iterations ``first`` to ``last`` and rows ``top`` to ``bottom``; ``number``, if any, is shown
    above it."""

    first: int
    last: int
    top: int
    bottom: int
    number: str = ""


@dataclass(frozen=True)
class Bars:
    """A histogram: ``shares`` between ``edges``."""

    edges: np.ndarray
    shares: np.ndarray
    label: str
    style: int = 0


@dataclass(frozen=True)
class Band:
    """A shaded interval along x."""

    low: float
    high: float
    style: int = 0


Mark = Line | Points | Heat | Outline | Bars | Band


@dataclass(frozen=True)
class Chart:
    """A chart. ``note``: lines shown above it in print."""

    x: Axis
    y: Axis
    marks: tuple[Mark, ...] = field(default=())
    note: tuple[str, ...] = ()


class Drawing(ABC):
    """Base class of drawings: one method for each kind of mark."""

    def add(self, mark: Mark) -> None:
        """Draw one mark."""
        getattr(self, f"draw_{type(mark).__name__.lower()}")(mark)

    @abstractmethod
    def draw_line(self, mark: Line) -> None: ...

    @abstractmethod
    def draw_points(self, mark: Points) -> None: ...

    @abstractmethod
    def draw_heat(self, mark: Heat) -> None: ...

    @abstractmethod
    def draw_outline(self, mark: Outline) -> None: ...

    @abstractmethod
    def draw_bars(self, mark: Bars) -> None: ...

    @abstractmethod
    def draw_band(self, mark: Band) -> None: ...
