"""Recorded training runs that ship with the package: gradient norms by layer, loss and accuracy, as Parquet files.

``stabilitylab/open_data/<name>/`` contains ``README.md`` (the data card), ``runs.csv`` (one row per run) and
``<run>.parquet`` (one row per iteration: ``iteration``, one column per layer from input to output, ``loss``,
``knn_top1``).
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.results import RunAnalysis
from stabilitylab.analysis.series import EvalCurve, LayerSeries, RunSeries
from stabilitylab.comparison.pooled import PooledLag, pooled_lags
from stabilitylab.errors import NoDataError
from stabilitylab.registry import check_choice
from stabilitylab.run.frames import table
from stabilitylab.run.view import Analysis
from stabilitylab.store.database import connect
from stabilitylab.store.schema import quote
from stabilitylab.store.segments import glob_escaped

if TYPE_CHECKING:
    from pandas import DataFrame

_BESIDE = ("iteration", "loss", "knn_top1")
FOLDER = "open_data"


def available() -> list[str]:
    """The names that `load` accepts."""
    root = files("stabilitylab") / FOLDER
    return sorted(entry.name for entry in root.iterdir() if (entry / "README.md").is_file())


def load(name: str) -> OpenData:
    """Load the recorded runs called ``name``. Raises ConfigError, which lists the available names."""
    check_choice("recorded data", name, available())
    return OpenData(Path(str(files("stabilitylab") / FOLDER / name)))


class OpenData:
    """Recorded runs. ``runs`` has one row per run; ``series`` and ``analyze`` take the name of a run, ``pooled_lags`` a
    group of runs.

    Examples:
        >>> data = load("first-layer-spikes")  # doctest: +SKIP
        >>> data.series(data.runs.run[0]).plot()  # doctest: +SKIP
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._analysed: dict[str, RunAnalysis] = {}

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def card(self) -> str:
        """The data card in Markdown: how the runs were made and what they contain."""
        return (self.path / "README.md").read_text(encoding="utf-8")

    @property
    def runs(self) -> DataFrame:
        """One row per run: its name, the settings that vary, and its results."""
        import pandas as pd

        return pd.read_csv(self.path / "runs.csv", keep_default_na=False, na_values=[""])

    def series(self, run: str) -> DataFrame:
        """Gradient norms (L2, before any clipping), indexed by iteration: one column per layer, then ``loss`` and
        ``knn_top1``, which is NaN between evaluations. Raises NoDataError for an unknown run."""
        file = self.path / f"{run}.parquet"
        if not file.is_file() or run not in set(self.runs["run"]):
            raise NoDataError(f"no run {run!r} in {self.name}; its runs are {', '.join(self.runs['run'])}")
        with connect() as con:  # pandas would need pyarrow
            frame: DataFrame = con.execute(f"FROM read_parquet({quote(glob_escaped(file))})").df()
        return frame.set_index("iteration")

    def analyze(self, run: str) -> Analysis:
        """Spikes, episodes, lags and dips of a run, as from `Run.analyze`."""
        return Analysis(self._analyse(run), "finished")

    def pooled_lags(self, **chosen: Any) -> DataFrame:
        """One row per layer: its lag behind the first layer, in iterations, pooled over the chosen runs.

        ``chosen``: required values of columns of ``runs``, such as ``mitigation="none"``.
        """
        rows = self.runs
        for key, value in chosen.items():
            check_choice("column", key, rows.columns)
            rows = rows[rows[key] == value]
        group = ", ".join(f"{key} {value}" for key, value in chosen.items()) or "all"
        return table(pooled_lags({group: [self._analyse(run) for run in rows["run"]]}), PooledLag)

    def _analyse(self, run: str) -> RunAnalysis:
        if run not in self._analysed:
            self._analysed[run] = analyze_run(self._series(run))
        return self._analysed[run]

    def _series(self, run: str) -> RunSeries:
        frame = self.series(run)
        row = self.runs.set_index("run").loc[run].to_dict()
        steps = frame.index.to_numpy(dtype=np.int64)
        layers: list[LayerSeries] = []
        for depth, name in enumerate(column for column in frame.columns if column not in _BESIDE):
            values = frame[name].to_numpy(dtype=np.float64)
            there = np.isfinite(values)
            layers.append(LayerSeries(str(name), depth, steps[there], values[there]))
        accuracy = frame["knn_top1"].dropna()
        evaluated = accuracy.index.to_numpy(dtype=np.int64)
        samples = np.full(len(evaluated), int(row["knn_samples"]), dtype=np.int64)
        loss = frame["loss"].dropna()
        return RunSeries(
            run=run,
            iterations=int(row["iterations"]),
            layers=tuple(layers),
            evals={"knn_top1": EvalCurve(evaluated, accuracy.to_numpy(dtype=np.float64), samples)},
            scalars={"loss": (loss.index.to_numpy(dtype=np.int64), loss.to_numpy(dtype=np.float64))},
        )

    def __repr__(self) -> str:
        rows = self.runs
        return (
            f"{self.name}: {len(rows)} runs, {int(rows['iterations'].sum()):,} iterations; .card tells how it was made"
        )
