"""What `Run.analyze` and `compare` return: DataFrames and readable results."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from stabilitylab.analysis import results, sentences
from stabilitylab.analysis.results import RunAnalysis
from stabilitylab.comparison.results import Comparison, Effect, LrSensitivity, RunSummary
from stabilitylab.errors import NoDataError
from stabilitylab.run.frames import Result, as_html, described, table

if TYPE_CHECKING:
    from pandas import DataFrame


class Analysis:
    """The analysis of one run. ``result`` is the `RunAnalysis` with every number; ``notes`` name what lacked data.

    What could not be judged is not the same as what was not found: ``a.dips`` then raises `NoDataError` with the
    reason, while an empty DataFrame means that none were found.
    """

    def __init__(self, result: RunAnalysis, status: str) -> None:
        self.result, self.status = result, status

    @property
    def notes(self) -> tuple[str, ...]:
        return self.result.notes

    @property
    def spikes(self) -> DataFrame:
        """One row a gradient spike: layer, onset, peak, end (iterations), ratio (times usual), z, kind."""
        return self._table("spikes", results.Spike)

    @property
    def episodes(self) -> DataFrame:
        """One row an episode: spikes of several layers that belong together, in iterations and the order of layers."""
        return self._table("episodes", results.Episode)

    @property
    def dips(self) -> DataFrame:
        """One row a dip of the judged metric: start, trough, recovered (iterations), depth, z, area."""
        return self._table("dips", results.Dip)

    @property
    def drifts(self) -> DataFrame:
        """One row a drift: a norm that grows or shrinks by a large factor over a long stretch."""
        return self._table("drifts", getattr(results, "Drift", None))

    @property
    def propagation(self) -> DataFrame:
        """One row a layer: its lag behind the first layer, in iterations, with a 95% interval."""
        return self._table("propagation", results.LayerLag)

    @property
    def lag(self) -> Result:
        """The lag from the first to the last layer."""
        return Result(self._part("lag"), "Lag", sentences.lag_sentence(self.result))

    @property
    def collapse(self) -> Result:
        """Whether features no longer differ."""
        value = self._part("collapse")
        return Result(value, "Collapse", str(getattr(value, "reason", "")))

    @property
    def early_warning(self) -> Result:
        """Whether a signal rose before the spikes did."""
        return Result(self._part("early_warning"), "Early warning", sentences.early_sentence(self.result))

    def to_dict(self) -> dict[str, Any]:
        """The JSON of ``stablab analyze --format json``."""
        return self.result.to_dict()

    def _part(self, name: str) -> Any:
        value = getattr(self.result, name, None)
        if value is None:
            reasons = [note for note in self.notes if name.rstrip("s").replace("_", " ") in note]
            needs = {"early_warning": "record adam_rms", "collapse": "record evaluations of the features"}
            why = "; ".join(reasons) or needs.get(name, "the run lacks what it needs")
            raise NoDataError(f"{name} of run {self.result.run} was not judged: {why}")
        return value

    def _table(self, name: str, kind: type | None) -> DataFrame:
        return table(self._part(name), kind, name)

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("iterations", f"{self.result.iterations}{', still running' if self.status == 'running' else ''}")]
        for name in ("spikes", "episodes", "dips", "drifts"):
            if hasattr(self.result, name):
                value = getattr(self.result, name)
                rows.append((name, "not judged" if value is None else str(len(value))))
        if self.result.false_alarms is not None:
            rows.append(("spikes expected by chance", f"{self.result.false_alarms.expected:.1f}"))
        if self.result.lag is not None:
            rows.append(("lag", sentences.lag_sentence(self.result)))
        early = sentences.early_sentence(self.result)
        return rows + ([("early warning", early)] if early else []) + [("note", note) for note in self.notes]

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self._rows())
        return "\n".join([f"Analysis of {self.result.run}", *(f"  {n:<{width}}  {v}" for n, v in self._rows())])

    def _repr_html_(self) -> str:
        return as_html(f"Analysis of {self.result.run}", "", self._rows())


class Compared:
    """Runs side by side. ``result`` is the `Comparison` with every number."""

    def __init__(self, result: Comparison) -> None:
        self.result = result

    @property
    def notes(self) -> tuple[str, ...]:
        return self.result.notes

    @property
    def effects(self) -> DataFrame:
        """One row per mitigation and metric: difference, 95% interval, exact p-value, verdict and warning."""
        return table(self.result.effects, Effect, "effects")

    @property
    def runs(self) -> DataFrame:
        """One row a run, indexed by its name."""
        return described(table(self.result.runs, RunSummary, "runs").set_index("run"), "runs")

    @property
    def lr_sensitivity(self) -> DataFrame:
        """One row a mitigation: what it loses over learning rates against its own best."""
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
