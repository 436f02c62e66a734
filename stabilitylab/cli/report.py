"""``stablab report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stabilitylab.cli.options import runs_dir
from stabilitylab.config import ConfigError

if TYPE_CHECKING:
    from stabilitylab.report.html import ReportRun
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
    from stabilitylab.analysis.compare import compare_runs, summarize_run
    from stabilitylab.report.html import render_report, write_report
    from stabilitylab.store.reader import open_run

    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"cannot write {output}: give a file in a folder that exists")
    shown = []
    for run_dir in run_dirs:
        with open_run(run_dir) as reader:
            shown.append(_report_run(reader))
    comparison = None
    if len(shown) > 1:
        summaries = [
            summarize_run(
                run.series,
                run.analysis,
                mitigation="+".join(run.config.get("mitigation") or ()) or "none",
                seed=run.config.get("train", {}).get("seed", 0),
                base_lr=run.config.get("optim", {}).get("base_lr", float("nan")),
            )
            for run in shown
        ]
        comparison = compare_runs(summaries)
    try:
        write_report(output, render_report(shown, comparison))
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from None


def _report_run(reader: RunReader) -> ReportRun:
    from stabilitylab.analysis.run import analyze_run
    from stabilitylab.experiments import load_series
    from stabilitylab.report.html import ReportRun

    series = load_series(reader)
    curve = reader.table("iterations")
    known = [name for name in ("seed", "device", "git_commit") if reader.meta.get(name)]
    versions = sorted(name for name in reader.meta if name.endswith("_version"))
    return ReportRun(
        series=series,
        analysis=analyze_run(series),
        config=reader.config,
        status=reader.status,
        created_at=reader.meta.get("created_at", ""),
        loss=(curve["iteration"], curve["loss"]) if len(curve["iteration"]) else None,
        provenance={name: reader.meta[name] for name in (*known, *versions)},
        events=[(e.iteration, e.kind, e.detail) for e in reader.events()],
    )
