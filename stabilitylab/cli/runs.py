"""``stablab runs``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from stabilitylab.cli.options import runs_dir

if TYPE_CHECKING:
    from stabilitylab.store.location import RunInfo


def _mitigation(run: RunInfo) -> str:
    """Empty for a run that was recorded or imported without a configuration: its mitigation is not known."""
    return ", ".join(run.mitigation) or ("none" if run.method else "")


@click.command(short_help="List the runs.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@runs_dir
def command(form: str, runs_dir: str | None) -> None:
    """List the runs: status, length, method, encoder, data, mitigation, and the last value of the metric by which each
    run is judged."""
    from stabilitylab.cli import terminal
    from stabilitylab.run.judged import judged_value
    from stabilitylab.store.location import list_runs, runs_root

    root = runs_root(runs_dir)
    listed = list_runs(root)
    judged = [judged_value(run) for run in listed]
    if form == "json":
        rows = [
            {
                "run": run.name,
                "status": run.status,
                "created_at": run.created_at,
                "iterations": run.iterations,
                "method": run.method,
                "arch": run.arch,
                "data": run.data,
                "mitigation": list(run.mitigation),
                "knn_top1": run.knn_top1,
                "metric": metric or None,
                "value": value,
            }
            for run, (metric, value) in zip(listed, judged, strict=True)
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    if not listed:
        missing = "" if root.is_dir() else ", which does not exist"
        click.echo(f"no runs in {root}{missing}; start one with: stablab train --log-grads")
        return
    cells = [
        (run.name, run.status, str(run.iterations), run.method, run.arch, run.data, _mitigation(run),
         metric, "" if value is None else f"{value:.3f}")
        for run, (metric, value) in zip(listed, judged, strict=True)
    ]  # fmt: skip
    titles = ("run", "status", "iterations", "method", "encoder", "data", "mitigation", "metric", "last")
    terminal.print_table(titles, cells, right=("iterations", "last"))
