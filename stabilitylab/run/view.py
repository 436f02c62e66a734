"""The return types of `Run.analyze` and `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from stabilitylab.analysis import results, sentences
from stabilitylab.analysis.drift import Drift
from stabilitylab.analysis.results import RunAnalysis
from stabilitylab.comparison.pooled import PooledLag
from stabilitylab.comparison.results import Comparison, Effect, LrSensitivity, RunSummary
from stabilitylab.errors import NoDataError
from stabilitylab.run.frames import Result, as_html, described, not_judged, table

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    from stabilitylab.run.analysed import AnalysedRun


_NO_DATA = "the run lacks the data"
_NEEDS = {"early_warning": "no signal was recorded beside grad_norm", "early_warnings": "no signal was recorded"}


class Analysis:
    """The analysis of one run. ``result`` is the `RunAnalysis` with all numbers; ``notes`` list missing data.

    A table or result for which the run lacks data prints ``not judged`` and the reason, and
    ``a.dips.attrs["judged"]`` or ``a.lag.judged`` is False. Any other empty table means that nothing was found.
    """

    def __init__(self, result: RunAnalysis, status: str) -> None:
        self.result, self.status = result, status

    @property
    def notes(self) -> tuple[str, ...]:
        return self.result.notes

    @property
    def spikes(self) -> DataFrame:
        """One row per gradient spike: layer, onset, peak, end (iterations), ratio (times the usual norm), z, kind."""
        return self._table("spikes", results.Spike)

    @property
    def episodes(self) -> DataFrame:
        """One row per episode, a group of spikes that overlap in several layers, with the order of the layers."""
        return self._table("episodes", results.Episode)

    @property
    def dips(self) -> DataFrame:
        """One row per dip of the judged metric: start, trough, recovered (iterations), depth, z, area."""
        return self._table("dips", results.Dip)

    @property
    def drifts(self) -> DataFrame:
        """One row per drift: a norm that grows or shrinks by a large factor over a long period."""
        return self._table("drifts", Drift)

    @property
    def propagation(self) -> DataFrame:
        """One row per layer: its lag behind the first layer, in iterations, with a 95% interval."""
        return self._table("propagation", results.LayerLag)

    @property
    def early_warnings(self) -> DataFrame:
        """One row per recorded signal: how often it rose before spikes, and by how much; see `early_warning`."""
        return self._table("early_warnings", results.EarlyWarning)

    @property
    def loss_spikes(self) -> DataFrame:
        """One row per spike of the training loss."""
        loss_spikes = self.result.loss_spikes
        if loss_spikes is None or loss_spikes.reason:
            return not_judged("loss_spikes", loss_spikes.reason if loss_spikes else _NO_DATA, results.Spike)
        return table(loss_spikes.spikes, results.Spike, "loss_spikes")

    @property
    def lag(self) -> Result:
        """The lag from the first to the last layer."""
        return self._result("lag", "Lag", sentences.lag_sentence(self.result))

    @property
    def collapse(self) -> Result:
        """Whether the features collapsed: ``verdict``, ``reason`` and the evidence."""
        collapse = self.result.collapse
        words = sentences.collapse_words(self.result)
        words += f": {collapse.reason}" if collapse is not None and collapse.reason else ""
        return self._result("collapse", "Collapse", words)

    @property
    def early_warning(self) -> Result:
        """Whether a signal rose before the spikes did."""
        warning = self.result.early_warning
        words = sentences.early_sentence(self.result) or (warning.reason if warning else "")
        return self._result("early_warning", "Early warning", words)

    def to_dict(self) -> dict[str, Any]:
        """The same content as the JSON of ``stablab analyze --format json``."""
        return self.result.to_dict()

    def _lacks(self, name: str) -> str:
        """Why a table could not be judged; empty if it could."""
        if getattr(self.result, name) is None:
            return self._why(name)
        if name in ("spikes", "episodes") and self.result.spikes_unjudged:
            return self.result.spikes_reason
        few = [note for note in self.notes if note.startswith("not enough data for drift in every layer")]
        return few[0] if name == "drifts" and few else ""

    def _why(self, name: str) -> str:
        """The reason why a result is missing, from the notes."""
        words = name.rstrip("s").replace("_", " ")
        return "; ".join(note for note in self.notes if words in note) or _NEEDS.get(name, _NO_DATA)

    def _result(self, name: str, title: str, sentence: str) -> Result:
        value = getattr(self.result, name)
        return Result(value, title, sentence if value is not None else f"not judged: {self._why(name)}")

    def _table(self, name: str, kind: type) -> DataFrame:
        why = self._lacks(name)
        return not_judged(name, why, kind) if why else table(getattr(self.result, name), kind, name)

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("iterations", f"{self.result.iterations}{', still running' if self.status == 'running' else ''}")]
        for name in ("spikes", "episodes", "dips", "drifts"):
            value = getattr(self.result, name)
            number = sentences.drift_count(self.result) if name == "drifts" else str(len(value or ()))
            rows.append((name, "not judged" if self._lacks(name) else number))
        if self.result.false_alarms is not None and not self.result.spikes_unjudged:
            rows.append(("spikes expected by chance", f"{self.result.false_alarms.expected:.1f}"))
        if self.result.lag is not None:
            rows.append(("lag", sentences.lag_sentence(self.result)))
        if self.result.collapse is not None:
            rows.append(("collapse", sentences.collapse_words(self.result)))
        early = sentences.early_sentence(self.result)
        return rows + ([("early warning", early)] if early else []) + [("note", note) for note in self.notes]

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self._rows())
        return "\n".join([f"Analysis of {self.result.run}", *(f"  {n:<{width}}  {v}" for n, v in self._rows())])

    def _repr_html_(self) -> str:
        return as_html(f"Analysis of {self.result.run}", "", self._rows())


class Compared:
    """A comparison of runs. ``result`` is the `Comparison` with all numbers."""

    def __init__(self, result: Comparison, runs: Sequence[AnalysedRun] = ()) -> None:
        self.result = result
        self._runs = runs

    def plot(self, kind: str = "metric") -> Figure:
        """A plotly figure of the runs; ``kind`` is one of `Compared.plots`. Raises `NoDataError` for an unknown kind
        or if no run has the data.
        """
        from stabilitylab.report.plots import draw_comparison

        if kind not in self.plots:
            raise NoDataError(f"no plot {kind!r} of a comparison; available: {', '.join(self.plots)}")
        return draw_comparison(kind, self._runs, self.result)

    @property
    def plots(self) -> dict[str, str]:
        """The kinds of plots, with one line about each."""
        from stabilitylab.report.plots import COMPARISON_PLOTS

        return {name: plot.help for name, plot in COMPARISON_PLOTS.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        return self.result.notes

    @property
    def effects(self) -> DataFrame:
        """One row per mitigation and metric: difference, 95% interval, exact p-value, verdict and warning."""
        return table(self.result.effects, Effect, "effects")

    @property
    def runs(self) -> DataFrame:
        """One row per run, indexed by its name."""
        return described(table(self.result.runs, RunSummary, "runs").set_index("run"), "runs")

    @property
    def lags(self) -> DataFrame:
        """One row per group and layer: the lag pooled over the runs of the group."""
        return table(self.result.lags, PooledLag, "lags")

    @property
    def lr_sensitivity(self) -> DataFrame:
        """One row per mitigation: its loss at each learning rate relative to its own best."""
        return table(self.result.lr_sensitivity, LrSensitivity, "lr_sensitivity")

    def __repr__(self) -> str:
        lines = [f"Comparison of {len(self.result.runs)} runs against {self.result.baseline!r}"]
        for effect in self.result.effects:
            low_high = f" [{effect.ci95[0]:.4g}, {effect.ci95[1]:.4g}]" if effect.ci95 else ""
            lines.append(
                f"  {effect.mitigation} {effect.metric}: {effect.difference:+.4g}{low_high} "
                f"over {effect.num_seeds} seeds: {effect.verdict}"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        shown = [name for name in _SHOWN if name in {field.name for field in fields(Effect)}]
        html: str = self.effects[shown].to_html(index=False, float_format="{:.4g}".format, escape=True)
        return html


_SHOWN = (
    "mitigation",
    "metric",
    "baseline_mean",
    "mitigated_mean",
    "difference",
    "ci95",
    "p_holm",
    "num_seeds",
    "verdict",
)
