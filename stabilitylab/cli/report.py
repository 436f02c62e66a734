"""``stablab report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stabilitylab.cli.options import runs_dir
from stabilitylab.errors import ConfigError, NoDataError

if TYPE_CHECKING:
    from stabilitylab.analysis.results import RunAnalysis
    from stabilitylab.comparison.results import Comparison
    from stabilitylab.report.runs import ReportRun
    from stabilitylab.store.reader import RunReader


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("-o", "--output", required=True, metavar="FILE", help="The HTML file. Self-contained: open it offline.")
@runs_dir
def command(runs: tuple[str, ...], output: str, runs_dir: str | None) -> None:
    """Write an HTML report of one run, or of several compared."""
    from stabilitylab.store.location import find_run, runs_root

    root = runs_root(runs_dir)
    build_report([find_run(root, run) for run in dict.fromkeys(runs)], Path(output))
    click.echo(f"report: {output}")


def build_report(run_dirs: Sequence[Path], output: Path) -> None:
    """Analyse runs, compare them where there are several, and write the report."""
    from stabilitylab.report.html.page import render_report
    from stabilitylab.report.writing import write_whole

    check_output(output)
    runs = load_runs(run_dirs)
    page = render_report(runs, compare(runs) if len(runs) > 1 else None)
    try:
        write_whole(output, page.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from None


def check_output(output: Path) -> None:
    """Before minutes of analysis, not after."""
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"cannot write {output}: give a file in a folder that exists")


def load_runs(run_dirs: Sequence[Path]) -> list[ReportRun]:
    """The runs, analysed. What is damaged in a run's record is named on standard error."""
    from stabilitylab.store.reader import open_run

    runs = []
    for run_dir in run_dirs:
        analysis = _kept_analysis(run_dir)
        with open_run(run_dir) as reader:  # after the analysis: what it found is in what is drawn, also of a live run
            for problem in reader.problems:
                click.echo(f"stablab: warning: {problem}", err=True)
            runs.append(_report_run(reader, analysis))
    return runs


def _kept_analysis(run_dir: Path) -> RunAnalysis | None:
    """The analysis that is kept beside the run, or made and kept now; None for a run without gradients."""
    from stabilitylab.run.answers import answer_run

    try:
        return answer_run(run_dir).analysis
    except NoDataError:
        return None


def compare(runs: Sequence[ReportRun]) -> Comparison:
    """The runs side by side, mitigations against none."""
    from stabilitylab.comparison.effects import compare_runs
    from stabilitylab.run.answers import summarize

    return compare_runs([summarize(run.series, run.analysis, run.config) for run in runs])


def _report_run(reader: RunReader, analysis: RunAnalysis | None) -> ReportRun:
    from stabilitylab.analysis.explain import explain_episodes
    from stabilitylab.analysis.pipeline import analyze_run
    from stabilitylab.report.runs import ReportRun
    from stabilitylab.run.series import load_series

    series = load_series(reader)
    curve = reader.table("iterations")
    known = [name for name in ("seed", "device", "git_commit") if reader.meta.get(name)]
    versions = sorted(name for name in reader.meta if name.endswith("_version"))
    found = analysis or analyze_run(series)
    return ReportRun(
        series=series,
        analysis=found,
        config=reader.config,
        status=reader.status,
        created_at=reader.meta.get("created_at", ""),
        loss=(curve["iteration"], curve["loss"]) if len(curve["iteration"]) else None,
        provenance={name: reader.meta[name] for name in (*known, *versions)},
        events=[(e.iteration, e.kind, e.detail) for e in reader.events()],
        accounts=[(account.text, account.next) for account in explain_episodes(found, reader.config)],
    )
