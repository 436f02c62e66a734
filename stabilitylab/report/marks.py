"""What a chart is made of, whoever draws it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stabilitylab.analysis.series import LayerSeries


@dataclass(frozen=True)
class Axis:
    """``names``: a row each, the first at the top. ``ticks``: (value, label); where none are given, the drawing's."""

    title: str
    log: bool = False
    names: tuple[str, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()
    zero_line: bool = False


@dataclass(frozen=True)
class Line:
    """``style`` picks colour, dash and symbol. ``role``: ``curve``; ``seed`` (one of several of its label), ``mean``
    (of the seeds), ``span`` (a stretch to emphasise), ``join`` (belongs together) or ``chance`` (steps between
    ``edges``). ``hover`` is plotly's template, ``run`` what it names; ``note`` goes with the label in print."""

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
    """Marks at (x, y). ``texts``: one a mark, shown on hover. ``low``, ``high``: intervals along x. ``hollow``:
    circles without filling. ``label`` is that of the line they belong to; ``what`` says what is marked."""

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
    """The layers' norms relative to their running median; see `downsample.heat_rows`."""

    layers: tuple[LayerSeries, ...]


@dataclass(frozen=True)
class Outline:
    """A rectangle over rows ``top`` to ``bottom``; ``number`` is shown above it, if any."""

    first: int
    last: int
    top: int
    bottom: int
    number: str = ""


@dataclass(frozen=True)
class Bars:
    """Shares between ``edges``."""

    edges: np.ndarray
    shares: np.ndarray
    label: str
    style: int = 0


@dataclass(frozen=True)
class Band:
    """An interval along x, shaded."""

    low: float
    high: float
    style: int = 0


Mark = Line | Points | Heat | Outline | Bars | Band


@dataclass(frozen=True)
class Chart:
    """``note``: what stands above the chart in print, a line each."""

    x: Axis
    y: Axis
    marks: tuple[Mark, ...] = field(default=())
    note: tuple[str, ...] = ()


class Drawing(ABC):
    """Draws marks one by one; a way of drawing has a method for each kind."""

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
