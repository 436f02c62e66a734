"""``stablab report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stabilitylab.cli.options import runs_dir

if TYPE_CHECKING:
    from stabilitylab.comparison.results import Comparison
    from stabilitylab.run.analysed import AnalysedRun


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("-o", "--output", required=True, metavar="FILE", help="The HTML file. Self-contained: open it offline.")
@runs_dir
def command(runs: tuple[str, ...], output: str, runs_dir: str | None) -> None:
    """Write an HTML report of one run, or a comparison of several."""
    from stabilitylab.store.location import find_run, runs_root

    root = runs_root(runs_dir)
    build_report([find_run(root, run) for run in dict.fromkeys(runs)], Path(output))
    click.echo(f"report: {output}")


def build_report(run_dirs: Sequence[Path], output: Path) -> None:
    """Analyse the runs, compare them if there are several, and write the report."""
    from stabilitylab.report.writing import check_output, write_report

    check_output(output, "html")
    runs = load_runs(run_dirs)
    write_report(runs, compare(runs) if len(runs) > 1 else None, output)


def load_runs(run_dirs: Sequence[Path]) -> list[AnalysedRun]:
    """Load and analyse the runs. Damaged data are reported on standard error."""
    from stabilitylab.run.loading import load_run

    runs = [load_run(run_dir) for run_dir in run_dirs]
    for problem in (problem for run in runs for problem in run.problems):
        click.echo(f"stablab: warning: {problem}", err=True)
    return runs


def compare(runs: Sequence[AnalysedRun]) -> Comparison:
    """Compare the runs, with no mitigation as the baseline."""
    from dataclasses import replace

    from stabilitylab.comparison.effects import compare_runs
    from stabilitylab.comparison.pooled import by_mitigation

    lags = by_mitigation((run.summary.mitigation, run.analysis) for run in runs)
    return replace(compare_runs([run.summary for run in runs]), lags=lags)
