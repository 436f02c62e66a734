"""``stablab export``."""

from __future__ import annotations

from pathlib import Path

import click

from stabilitylab.cli.options import runs_dir
from stabilitylab.store.schema import EXPORT_FORMATS


@click.command()
@click.argument("run")
@click.option("-o", "--output", required=True, metavar="DIR", help="The output folder, which is created if missing.")
@click.option("--format", "form", type=click.Choice(EXPORT_FORMATS), default="parquet", show_default=True)
@runs_dir
def command(run: str, output: str, form: str, runs_dir: str | None) -> None:
    """Export RUN's tables as Parquet or CSV, one file per table."""
    from stabilitylab.store.export import export_run
    from stabilitylab.store.location import find_run, runs_root

    for path in export_run(find_run(runs_root(runs_dir), run), Path(output), form):
        click.echo(path)
