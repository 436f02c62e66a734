"""Results as DataFrames and as readable text and HTML."""

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
    "iteration": "number of optimizer updates before it, 0-based",
    "layer": "name of the layer",
    "name": "name of the layer",
    "depth": "layers: position from the input, 0-based; dips: fraction or difference of the metric",
    "num_params": "number of parameters",
    "trainable": "whether a parameter of the layer is trained",
    "onset": "iteration at which the spike reaches half its height",
    "peak": "iteration of the largest value",
    "start": "first iteration",
    "end": "last iteration, inclusive",
    "trough": "iteration of the lowest point",
    "recovered": "iteration of recovery; missing if the run ended before",
    "ratio": "peak divided by the usual norm before it",
    "z": "robust standard deviations (spikes: on the log scale; dips: standard errors)",
    "kind": "spike, or nonfinite for gradients that are NaN or infinite",
    "leader": "layer whose spike starts the episode",
    "order": "(layer, onset) of each layer in the episode",
    "reach": "share of the trained layers in the episode, 0 to 1",
    "peak_layer": "layer of the largest spike in the episode",
    "area": "depth x iterations",
    "after_spike": "the spike that the dip is linked to: layer and onset",
    "began_after": "evaluation before the start: the dip began after it",
    "down_until": "last evaluation in the dip",
    "median_lag": "iterations behind the first layer; missing if nothing matched",
    "num_matched": "matched pairs of spikes",
    "ci95": "95% confidence interval: low and high",
    "p_value": "probability of a result at least this extreme by chance",
    "p_holm": "p_value, corrected for the number of comparisons (Holm)",
    "value": "value of the metric, as recorded",
    "num_samples": "images evaluated; 0 if unknown",
    "difference": "mitigated minus baseline, mean over seeds",
    "num_seeds": "pairs of runs, one per seed",
    "base_lr": "learning rate x 256 / batch size",
    "knn_top1": "last kNN accuracy, fraction",
    "metric": "the metric that is judged",
    "iterations": "iterations recorded",
}


def table(rows: Sequence[Any], kind: type | None = None, name: str = "") -> DataFrame:
    """A DataFrame with one row per dataclass instance and one column per field. ``df.attrs["columns"]`` documents each
    column and its unit. ``kind``: the dataclass, which defines the columns of an empty table."""
    from pandas import DataFrame

    kind = kind or (type(rows[0]) if rows else None)
    names = [field.name for field in fields(kind)] if kind is not None else []
    frame = DataFrame([[_cell(getattr(row, name)) for name in names] for row in rows], columns=names)
    return described(frame, name)


def not_judged(name: str, why: str, kind: type | None) -> DataFrame:
    """An empty table that prints as "not judged", to distinguish it from "none found". ``df.attrs["judged"]`` is False
    and ``df.attrs["reason"]`` gives the reason."""
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
    """Document the columns of a frame in its ``attrs`` and return it."""
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
    """One result of an analysis, with its fields as attributes, a summary sentence and a table for notebooks.
    ``judged`` is False if the run lacks the data; accessing a field then raises `NoDataError` with the reason."""

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
        titled = self._sentence.startswith(self._title)
        lines = [f"{self._title}: {self._sentence}" if self._sentence and not titled else self._sentence or self._title]
        return "\n".join(lines + [f"  {name:<{width}}  {value}" for name, value in self._rows()])

    def _repr_html_(self) -> str:
        return as_html(self._title, self._sentence, self._rows())


def as_text(value: Any) -> str:
    """A short text for the value of a field."""
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
