"""``stablab import``."""

from __future__ import annotations

from pathlib import Path

import click

from stabilitylab.cli.options import runs_dir


@click.group(name="import")
def command() -> None:
    """Bring in another tool's logs as a run."""


@command.command("csv")
@click.option("--grads", required=True, metavar="FILE", help="iteration,layer,grad_norm[,grad_max][,depth]")
@click.option(
    "--scalars", metavar="FILE", help="iteration,name,value[,num_samples]; knn_top1 and loss are known names."
)
@click.option("--name", metavar="RUN", help="The run's name. Default: the next run_NNN.")
@runs_dir
def from_csv(grads: str, scalars: str | None, name: str | None, runs_dir: str | None) -> None:
    """Import gradient norms, and scalars if any, from CSV files."""
    from stabilitylab.integrations.csv import LogFormatError, import_csv
    from stabilitylab.store.location import runs_root

    try:
        path = import_csv(runs_root(runs_dir), Path(grads), Path(scalars) if scalars else None, name)
    except LogFormatError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"imported as {path.name}")
    click.echo(f"next: stablab analyze {path.name}" + (f" --runs-dir {runs_dir}" if runs_dir else ""))
