"""Collapse detection: hits on real runs that collapse, false alarms on healthy runs.

    python benchmarks/collapse.py DIR [--real DIR] [--trained DIR [--since TIME]]

DIR contains the runs of `_trained.py`: ``collapse-...`` (MoCo v3 with a weight decay of 3, SimCLR with learning rates
raised until its features collapse, BYOL without predictor) and ``healthy-...``. --real: more healthy runs, exported as
Parquet, with only the accuracy. A collapsing run with the verdict "partly" counts as neither hit nor miss.

--trained: a folder (searched at any depth) of runs whose class is decided by their kNN accuracy alone: healthy if it
ends within 0.1 of its best, at 0.7 or more; collapsed if it ends below half of its best; between otherwise. The
accuracy is one of the signs, so this measures false alarms on healthy runs; hits on runs that lose their accuracy are
easy. --since: only runs created later, such as the time at which the thresholds were last changed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.analysis.collapse import Collapse, find_collapse
from stabilitylab.analysis.series import EvalCurve, RunSeries
from stabilitylab.errors import StabilityLabError
from stabilitylab.run.answers import answer_run
from stabilitylab.run.series import load_series
from stabilitylab.store.reader import open_run


def exported(folder: Path) -> Collapse:
    """The verdict on an exported run that has only the accuracy."""
    rows = duckdb.sql(
        f"SELECT iteration::BIGINT AS i, value::DOUBLE AS x, num_samples::BIGINT AS n FROM '{folder}/evals.parquet' "
        "WHERE metric = 'knn_top1' ORDER BY iteration"
    ).fetchnumpy()
    curve = EvalCurve(np.asarray(rows["i"]), np.asarray(rows["x"]), np.asarray(rows["n"]))
    return find_collapse(RunSeries(folder.name, int(curve.iteration[-1]) + 1, ()), ("knn_top1", curve))


def line(name: str, found: Collapse, accuracy: tuple[float, float] | None) -> None:
    best, last = (f"{value:.2f}" for value in accuracy) if accuracy else ("", "")
    since = "" if found.iteration is None else str(found.iteration)
    print(f"{name:<26}{best:>6}{last:>6}  {found.verdict:<11}{since:>6}  {found.reason}", flush=True)


def by_accuracy(folders: Sequence[Path], since: str) -> None:
    """Verdicts on all runs below ``folders`` with at least 5 evaluations, by class."""
    told: dict[str, Counter[str]] = {"healthy": Counter(), "between": Counter(), "collapsed": Counter()}
    methods: dict[str, Counter[str]] = {}
    for path in sorted(file.parent for folder in folders for file in folder.rglob("run.duckdb")):
        try:
            with open_run(path) as reader:
                if reader.meta.get("created_at", "") < since or reader.status == "running":
                    continue
                series = load_series(reader)
        except StabilityLabError:
            continue
        curve = series.evals.get("knn_top1")
        if curve is None or len(curve.value) < 5 or "feature_rank" not in series.scalars:
            continue
        best, last = float(np.nanmax(curve.value)), float(curve.value[-1])
        kind = "healthy" if last >= max(best - 0.1, 0.7) else "collapsed" if last < best / 2 else "between"
        found = find_collapse(series, ("knn_top1", curve))
        told[kind][found.verdict] += 1
        methods.setdefault(str(series.facts.get("method")), Counter())[kind] += 1
        if (kind, found.verdict) not in (("healthy", "not"), ("collapsed", "collapsed")):
            line(f"{kind}: {path.name}"[:60], found, (best, last))
    for kind, counts in told.items():
        verdicts = ", ".join(f"{verdict} {n}" for verdict, n in counts.most_common())
        print(f"trained, {kind} by accuracy: {verdicts or 'none'} of {counts.total()}")
    print("; ".join(f"{name}: {dict(counts)}" for name, counts in methods.items()))


def main(folder: Path, real: Path | None) -> bool:
    print(f"{'run':<26}{'best':>6}{'last':>6}  {'verdict':<11}{'since':>6}  why")
    told: dict[str, Counter[str]] = {"collapse": Counter(), "healthy": Counter()}
    for path in sorted(folder.iterdir()):
        kind = path.name.split("-")[0]
        if kind not in told or not (path / "run.duckdb").exists():
            continue
        answer = answer_run(path, keep=False)
        found = answer.analysis.collapse
        assert found is not None
        summary = answer.summary
        knn = (summary.best_knn, summary.final_knn)
        line(path.name, found, knn if None not in knn else None)  # type: ignore[arg-type]
        told[kind][found.verdict] += 1
    for path in sorted(real.iterdir()) if real else []:
        if (path / "evals.parquet").exists():
            found = exported(path)
            line(path.name, found, None)
            told["healthy"][found.verdict] += 1
    for kind, counts in told.items():
        print(
            f"{kind}: " + ", ".join(f"{verdict} {n}" for verdict, n in counts.most_common()) + f" of {counts.total()}"
        )
    return told["healthy"]["collapsed"] == 0 and told["collapse"]["not"] == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--real", type=Path, help="a folder of healthy runs as Parquet")
    parser.add_argument("--trained", type=Path, action="append", help="a folder of other trained runs")
    parser.add_argument("--since", default="", metavar="TIME", help="only of those created later, in ISO format")
    given = parser.parse_args()
    if given.trained:
        by_accuracy(given.trained, given.since)
    if not main(given.folder, given.real):
        raise SystemExit("a healthy run is called collapsed, or a collapsed one is not seen")
