"""Results as DataFrames, and as text and HTML that a person wants to read."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from stabilitylab.errors import NoDataError

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS: dict[str, str] = {
    "iteration": "optimizer updates made before, 0-based",
    "layer": "name of the layer",
    "name": "name of the layer",
    "depth": "of a layer: its position from the input, 0-based; of a dip: fraction or difference of the metric",
    "num_params": "number of parameters",
    "trainable": "whether a parameter of the layer is trained",
    "onset": "iteration at which the spike reaches half its height",
    "peak": "iteration of the largest value",
    "start": "first iteration",
    "end": "last iteration, inclusive",
    "trough": "iteration of the lowest point",
    "recovered": "iteration of recovery; missing where the run ended first",
    "ratio": "peak over the usual norm before it, times",
    "z": "robust standard deviations (spikes: on the log scale; dips: standard errors)",
    "kind": "spike, or nonfinite for gradients that are NaN or infinite",
    "leader": "layer whose spike opens the episode",
    "order": "(layer, onset) of each layer that takes part",
    "reach": "share of the trained layers that take part, 0 to 1",
    "peak_layer": "layer of the episode's largest spike",
    "area": "depth x iterations",
    "after_spike": "the spike that precedes the dip: layer and onset",
    "median_lag": "iterations behind the first layer; missing where nothing matched",
    "num_matched": "matched pairs of spikes",
    "ci95": "95% confidence interval: low and high",
    "p_value": "probability under chance alone",
    "p_holm": "p_value, corrected for the number of comparisons (Holm)",
    "value": "value of the metric, as recorded",
    "num_samples": "images evaluated; 0 where unknown",
    "difference": "mitigated minus baseline, mean over seeds",
    "num_seeds": "pairs of runs, one per seed",
    "base_lr": "learning rate x 256 / batch size",
    "knn_top1": "last kNN accuracy, fraction",
    "iterations": "iterations recorded",
}


def table(rows: Sequence[Any], kind: type | None = None, name: str = "") -> DataFrame:
    """A DataFrame of dataclasses, one row each, columns as fields. ``df.attrs["columns"]`` says what each column is
    and in which unit. ``kind``: the dataclass, so that an empty table has its columns."""
    from pandas import DataFrame

    kind = kind or (type(rows[0]) if rows else None)
    names = [field.name for field in fields(kind)] if kind is not None else []
    frame = DataFrame([[_cell(getattr(row, name)) for name in names] for row in rows], columns=names)
    return described(frame, name)


def not_judged(name: str, why: str, kind: type | None) -> DataFrame:
    """An empty table that says in its text that nothing was judged, which is not the same as none found.
    ``df.attrs["judged"]`` is False, ``df.attrs["reason"]`` says why."""
    from pandas import DataFrame

    class NotJudged(DataFrame):
        def __repr__(self) -> str:
            return f"{name}: not judged: {why}"

        def _repr_html_(self) -> str:
            return as_html(name, f"not judged: {why}", [])

    frame = NotJudged(columns=[field.name for field in fields(kind)] if kind is not None else [])
    frame.attrs.update({"judged": False, "reason": why})
    return frame


def described(frame: DataFrame, name: str = "", **columns: str) -> DataFrame:
    """The same frame with its columns documented in ``attrs``."""
    known = {str(column): COLUMNS[str(column)] for column in frame.columns if str(column) in COLUMNS}
    frame.attrs["columns"] = known | columns
    if name:
        frame.attrs["name"] = name
    return frame


def _cell(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return ", ".join(str(getattr(value, field.name)) for field in fields(value))
    return value


class Result:
    """One result of an analysis: its fields as attributes, a sentence, and a table for notebooks. ``judged`` is False
    for a result that the run lacks the data for; its fields then raise `NoDataError` with the reason."""

    def __init__(self, value: Any, title: str, sentence: str) -> None:
        self._value, self._title, self._sentence = value, title, sentence

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._value is None:
            raise NoDataError(f"{self._title}: {self._sentence}")
        try:
            return getattr(self._value, name)
        except AttributeError:
            names = ", ".join(field.name for field in fields(self._value))
            raise AttributeError(f"{self._title} has no {name!r}; it has {names}") from None

    @property
    def judged(self) -> bool:
        return self._value is not None

    def __dir__(self) -> list[str]:
        return ["judged", *(field.name for field in fields(self._value))] if self.judged else ["judged"]

    def _rows(self) -> list[tuple[str, str]]:
        shown = []
        for field in fields(self._value) if self.judged else ():
            value = getattr(self._value, field.name)
            if value is None or value == "" or value == self._sentence:
                continue
            parts = value if isinstance(value, tuple) and value and is_dataclass(value[0]) else None
            if parts is not None:
                shown += [(f"{field.name.rstrip('s')} {number}", as_text(part)) for number, part in enumerate(parts, 1)]
            elif not (isinstance(value, tuple) and len(value) > 4):
                shown.append((field.name.replace("_", " "), as_text(value)))
        return shown

    def __repr__(self) -> str:
        width = max((len(name) for name, _ in self._rows()), default=0)
        told = self._sentence.startswith(self._title)  # the sentence names what it is about
        lines = [f"{self._title}: {self._sentence}" if self._sentence and not told else self._sentence or self._title]
        return "\n".join(lines + [f"  {name:<{width}}  {value}" for name, value in self._rows()])

    def _repr_html_(self) -> str:
        return as_html(self._title, self._sentence, self._rows())


def as_text(value: Any) -> str:
    """A field's value in few characters."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    if isinstance(value, tuple):
        return " to ".join(map(as_text, value)) if len(value) == 2 else ", ".join(map(as_text, value))
    if is_dataclass(value) and not isinstance(value, type):
        named = [(field.name, getattr(value, field.name)) for field in fields(value)]
        return ", ".join(f"{name} {as_text(item)}" for name, item in named if item is not None and item != "")
    return str(value)


def as_html(title: str, sentence: str, rows: Sequence[tuple[str, str]]) -> str:
    """A heading, a sentence and a table of names and values; all text is escaped."""
    body = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    text = f"<p>{html.escape(sentence)}</p>" if sentence else ""
    return f"<div><b>{html.escape(title)}</b>{text}<table>{body}</table></div>"
