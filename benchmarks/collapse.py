"""Collapse detection: hits on real runs that collapse, false alarms on healthy runs.

    python benchmarks/collapse.py DIR [--real DIR]

DIR contains the runs of `_trained.py`: ``collapse-...`` (MoCo v3 with a weight decay of 3, SimCLR with learning rates
raised until its features collapse, BYOL without predictor) and ``healthy-...``. --real: more healthy runs, exported as
Parquet, with only the accuracy. A collapsing run with the verdict "partly" counts as neither hit nor miss.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.analysis.collapse import Collapse, find_collapse
from stabilitylab.analysis.series import EvalCurve, RunSeries
from stabilitylab.run.answers import answer_run


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
    given = parser.parse_args()
    if not main(given.folder, given.real):
        raise SystemExit("a healthy run is called collapsed, or a collapsed one is not seen")
