"""Open, list and compare runs by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stabilitylab.comparison.arms import mitigation_name
from stabilitylab.comparison.effects import compare_runs
from stabilitylab.comparison.pooled import by_mitigation
from stabilitylab.errors import NoDataError, RunNotFound
from stabilitylab.run.frames import described
from stabilitylab.run.handle import Run
from stabilitylab.run.judged import judged_value
from stabilitylab.run.loading import load_run
from stabilitylab.run.view import Compared
from stabilitylab.store.location import find_run, list_runs, runs_root

if TYPE_CHECKING:
    from pandas import DataFrame


def open_run(run: str | Path, runs_dir: str | Path | None = None) -> Run:
    """Open a run by its name in the runs folder, or by the path of its folder.

    ``runs_dir``: the runs folder; by default ``$STABLAB_RUNS`` or, if unset, ``./runs``. Raises `RunNotFound`, which
    suggests similar names, and `RunBroken` for a run that cannot be read.
    """
    return Run(_locate(run, runs_dir))


def runs(runs_dir: str | Path | None = None) -> DataFrame:
    """The runs in the runs folder, one row per run, oldest first, indexed by name. ``metric`` is the one that the run
    is judged by and ``value`` its last value. A run that cannot be read has the status ``broken``."""
    from pandas import DataFrame

    columns = ("status", "created_at", "iterations", "method", "arch", "data", "mitigation", "knn_top1")
    listed = list_runs(runs_root(runs_dir))
    frame = DataFrame([[getattr(run, name) for name in columns] for run in listed], columns=list(columns))
    frame[["metric", "value"]] = [judged_value(run) for run in listed] or None
    frame["problem"] = [run.problem for run in listed]
    frame["mitigation"] = [mitigation_name(run.mitigation) if run.status != "broken" else "" for run in listed]
    frame.index = [run.name for run in listed]
    frame.index.name = "run"
    return described(frame, "runs")


def compare(
    runs: Iterable[str | Path | Run],
    *,
    baseline: str = "none",
    metric: str | None = None,
    goal: str | None = None,
    runs_dir: str | Path | None = None,
) -> Compared:
    """Compare runs by mitigation, paired by seed and learning rate, against the runs with ``baseline``.

    ``metric`` and ``goal``: the evaluation curve to judge. Raises `NoDataError` for fewer than two runs.
    """
    paths = [run.path if isinstance(run, Run) else _locate(run, runs_dir) for run in runs]
    paths = list(dict.fromkeys(paths))
    if len(paths) < 2:
        raise NoDataError("a comparison needs at least two runs")
    loaded = [load_run(path, metric=metric, goal=goal) for path in paths]
    lags = by_mitigation((run.summary.mitigation, run.analysis) for run in loaded)
    return Compared(replace(compare_runs([run.summary for run in loaded], baseline), lags=lags), loaded)


def _locate(run: str | Path, runs_dir: str | Path | None) -> Path:
    try:
        return find_run(runs_root(runs_dir), run)
    except RunNotFound as error:
        raise RunNotFound(str(error).replace("--runs-dir", "runs_dir=")) from None
