"""``stablab runs``."""

from __future__ import annotations

import json

import click

from stabilitylab.cli.options import runs_dir


@click.command()
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@runs_dir
def command(form: str, runs_dir: str | None) -> None:
    """List the runs: status, length, method, encoder, data, mitigation, last kNN."""
    from rich.table import Table
    from rich.text import Text

    from stabilitylab.cli import terminal
    from stabilitylab.store.location import list_runs, runs_root

    root = runs_root(runs_dir)
    found = list_runs(root)
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
            }
            for run in found
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    if not found:
        click.echo(f"no runs in {root}; start one with: stablab train --log-grads")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("run", "status", "iterations", "method", "encoder", "data", "mitigation", "kNN top-1"):
        table.add_column(title, overflow="fold", justify="right" if title in ("iterations", "kNN top-1") else "left")
    for run in found:
        knn = "" if run.knn_top1 is None else f"{run.knn_top1:.3f}"
        mitigation = ", ".join(run.mitigation) or "none"
        cells = (run.name, run.status, str(run.iterations), run.method, run.arch, run.data, mitigation, knn)
        table.add_row(*(Text(str(cell)) for cell in cells))
    console = terminal.console()
    if not console.is_terminal:
        console.width = 200  # into a pipe or a file nothing is cut
    console.print(table)
