"""The Run handle: the tables, plots and results of a run."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.series import last_of_each
from stabilitylab.errors import NoDataError
from stabilitylab.run.analysed import AnalysedRun
from stabilitylab.run.answers import recorded_rows
from stabilitylab.run.frames import as_html, described
from stabilitylab.run.loading import load_run
from stabilitylab.run.view import Analysis
from stabilitylab.signals import SIGNALS
from stabilitylab.store.query import QueryResult
from stabilitylab.store.reader import RunReader
from stabilitylab.store.reader import open_run as open_reader

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure


class Run:
    """A run: trained, attached or imported, finished or still being written. Every access reads the current data.

    ``path``: the run's folder. Usable as a context manager; `close` releases its resources.

    Examples:
        >>> import stabilitylab
        >>> run = stabilitylab.open_run("vits-digits")  # doctest: +SKIP
        >>> run.analyze().spikes  # doctest: +SKIP
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._rows = recorded_rows(self.path)
        self._opened: RunReader | None = open_reader(self.path)

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.path.resolve().name

    @property
    def status(self) -> str:
        """``running``, ``finished``, ``stopped`` or ``crashed``."""
        return self._reader().status

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as nested dicts; empty if the run was recorded without one."""
        return self._reader().config

    @property
    def num_iterations(self) -> int:
        """The last recorded iteration plus one."""
        return self._reader().num_iterations

    @property
    def problems(self) -> list[str]:
        """A description of each damaged part of the run."""
        return list(self._reader().problems)

    @property
    def layers(self) -> DataFrame:
        """One row per layer from input to output, indexed by layer_id: name, depth, num_params, trainable."""
        from pandas import DataFrame

        rows = self._reader().layers()
        columns = ("name", "depth", "num_params", "trainable")
        frame = DataFrame([[getattr(row, c) for c in columns] for row in rows], columns=list(columns))
        frame.index = [row.layer_id for row in rows]
        frame.index.name = "layer_id"
        return described(frame, "layers")

    @property
    def signals(self) -> list[str]:
        """The recorded signals; `stabilitylab.signals.SIGNALS` describes them."""
        return self._reader().measured_signals()

    @property
    def metrics(self) -> list[str]:
        """The names of the recorded evaluation metrics."""
        return list(self._reader().evals())

    @property
    def events(self) -> DataFrame:
        """One row per event: iteration, kind, detail."""
        from pandas import DataFrame

        rows = [(e.iteration, e.kind, e.detail) for e in self._reader().events()]
        frame = DataFrame(rows, columns=["iteration", "kind", "detail"])
        return described(frame, "events", kind="kind of event", detail="details")

    @property
    def iterations(self) -> DataFrame:
        """One row per iteration: epoch, loss, lr, ema_momentum, grad_norm (over all layers), seconds, images."""
        from pandas import DataFrame

        rows = self._reader().table("iterations")
        keep = last_of_each(rows["iteration"])
        frame = DataFrame({name: values[keep] for name, values in rows.items()}).set_index("iteration")
        return described(frame, "iterations", seconds="seconds per iteration", images="images seen")

    def signal(self, name: str = "grad_norm") -> DataFrame:
        """A signal as a table iterations x layers, layers from input to output. NaN if not measured, or if NaN was
        measured.

        ``df.attrs["unit"]`` and ``df.attrs["help"]`` describe the signal. Raises `NoDataError`, which lists the signals
        of the run, if ``name`` was not recorded.
        """
        from pandas import DataFrame, Index

        reader = self._reader()
        have = reader.measured_signals()
        if name not in have:
            raise NoDataError(f"run {self.name} has no signal {name!r}; {_available(have, name)}")
        recorded = reader.layer_series(name)
        layers = [row for row in reader.layers() if row.layer_id in recorded]
        grid = np.unique(np.concatenate([recorded[row.layer_id][0] for row in layers]))
        cells = np.full((len(grid), len(layers)), np.nan)
        for column, row in enumerate(layers):
            iteration, value = recorded[row.layer_id]
            keep = last_of_each(iteration)
            cells[np.searchsorted(grid, iteration[keep]), column] = value[keep]
        frame = DataFrame(cells, index=Index(grid, name="iteration"), columns=[row.name for row in layers])
        frame.columns.name = "layer"
        declared = SIGNALS.get(name)
        description = {"unit": declared.unit, "help": declared.help} if declared else {}
        frame.attrs.update({"name": name, **description})
        return frame

    def metric(self, name: str) -> DataFrame:
        """An evaluation curve, indexed by iteration: value (as recorded) and num_samples (0 if unknown).

        Raises `NoDataError`, which lists the metrics of the run, if ``name`` was not recorded.
        """
        from pandas import DataFrame, Index

        evals = self._reader().evals()
        if name not in evals:
            raise NoDataError(f"run {self.name} has no metric {name!r}; {_available(evals, name)}")
        curve = evals[name]
        keep = last_of_each(curve["iteration"])
        index = Index(curve["iteration"][keep], name="iteration")
        return described(DataFrame({c: curve[c][keep] for c in ("value", "num_samples")}, index=index), name)

    def sql(self, query: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> QueryResult:
        """Run one read-only SELECT over the run's tables. ``.df()`` returns a DataFrame, ``.fetchall()`` rows."""
        return self._reader().query(query, params)

    def analyze(
        self,
        metric: str | None = None,
        goal: str | None = None,
        *,
        first: str | None = None,
        last: str | None = None,
        settings: SpikeSettings | None = None,
        cache: bool = True,
    ) -> Analysis:
        """Find spikes, episodes, the lag from layer ``first`` to ``last``, and dips of ``metric`` (``goal``: max, min).

        By default, the metric is the one that the run declares, and the layers are the first and the last with
        gradients from the main loss. Results are cached in the run's folder until it has new rows; ``cache=False``
        disables this.
        """
        loaded = load_run(self.path, settings, metric=metric, goal=goal, first=first, last=last, keep=cache)
        return Analysis(loaded.analysis, loaded.status)

    def plot(self, kind: str = "spikes", **options: Any) -> Figure:
        """A plotly figure of ``kind``; `Run.plots` lists those for which the run has data.

        ``options`` depend on the kind, for example ``plot("signal", name="weight_norm")``. Raises `NoDataError` if the
        kind is unknown, with a list of all kinds, or if the run has no data for it.
        """
        from stabilitylab.report.plots import PLOTS, draw

        if kind not in PLOTS:
            raise NoDataError(f"no plot {kind!r}; {_available(PLOTS, kind)}")
        return draw(kind, self.analysed(), self, options)

    @property
    def plots(self) -> dict[str, str]:
        """The plots for which the run has data: name -> description. Analyses the run."""
        from stabilitylab.report.plots import plots_of

        return plots_of(self.analysed(), self)

    def report(self, path: str | Path) -> Path:
        """Write the HTML report of this run to ``path``. The report is a self-contained file."""
        from stabilitylab.report.writing import write_report

        return write_report([self.analysed()], None, Path(path))

    def analysed(self) -> AnalysedRun:
        """The run with its analysis, as used by reports."""
        return load_run(self.path)

    def refresh(self) -> Run:
        """Reopen the run's files. New rows are detected without it."""
        self._rows = recorded_rows(self.path)
        if self._opened is None:
            self._opened = open_reader(self.path)
        else:
            self._opened.refresh()
        return self

    def close(self) -> None:
        """Release the resources; the next access opens the run again."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _reader(self) -> RunReader:
        if self._opened is None or recorded_rows(self.path) != self._rows:
            self.refresh()
        assert self._opened is not None
        return self._opened

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _facts(self) -> list[tuple[str, str]]:
        reader = self._reader()
        return [
            ("status", reader.status),
            ("iterations", str(reader.num_iterations)),
            ("layers", str(len(reader.layers()))),
            ("signals", ", ".join(reader.measured_signals()) or "none"),
            ("metrics", ", ".join(reader.evals()) or "none"),
            *(("problem", problem) for problem in reader.problems),
        ]

    def __repr__(self) -> str:
        return "\n".join([f"Run {self.name}", *(f"  {name:<10}  {value}" for name, value in self._facts())])

    def _repr_html_(self) -> str:
        return as_html(f"Run {self.name}", "", self._facts())


def _available(names: Iterable[str], requested: str) -> str:
    """The available names, those similar to ``requested`` first."""
    known = list(names)
    near = difflib.get_close_matches(requested, known, n=3, cutoff=0.6)
    rest = [name for name in known if name not in near]
    return f"it has {', '.join(near + rest)}" if known else "it has none"
