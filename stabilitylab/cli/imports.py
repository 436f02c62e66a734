"""``stablab import``."""

from __future__ import annotations

from collections.abc import Callable
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
    from stabilitylab.importers.csv import import_csv

    _bring_in(lambda root: import_csv(root, Path(grads), Path(scalars) if scalars else None, name), runs_dir)


_grad_tag = click.option(
    "--grad-tag",
    metavar="REGEX",
    help="Which tags are gradient norms, with a group (?P<layer>...). Default: grad*/LAYER.",
)
_name = click.option("--name", metavar="RUN", help="The run's name. Default: the next run_NNN.")


@command.command("tensorboard")
@click.argument("folder", metavar="DIR")
@_grad_tag
@_name
@runs_dir
def from_tensorboard(folder: str, grad_tag: str | None, name: str | None, runs_dir: str | None) -> None:
    """Import the scalars of TensorBoard's event files under DIR."""
    from stabilitylab.importers.tags import GRAD_TAG, import_tags, read_tensorboard

    def bring(root: Path) -> Path:
        tags = read_tensorboard(Path(folder))
        return import_tags(root, tags, source="tensorboard", grad_tag=grad_tag or GRAD_TAG, name=name)

    _bring_in(bring, runs_dir)


@command.command("wandb")
@click.argument("file", metavar="FILE")
@_grad_tag
@_name
@runs_dir
def from_wandb(file: str, grad_tag: str | None, name: str | None, runs_dir: str | None) -> None:
    """Import a Weights & Biases export: a CSV with a step column, or history as JSON lines (.jsonl)."""
    from stabilitylab.importers.tags import GRAD_TAG, import_tags, read_wandb

    def bring(root: Path) -> Path:
        return import_tags(root, read_wandb(Path(file)), source="wandb", grad_tag=grad_tag or GRAD_TAG, name=name)

    _bring_in(bring, runs_dir)


def _bring_in(bring: Callable[[Path], Path], runs_dir: str | None) -> None:
    """Import, then name the run and the next command."""
    from stabilitylab.errors import LogFormatError
    from stabilitylab.store.location import runs_root

    try:
        path = bring(runs_root(runs_dir))
    except LogFormatError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"imported as {path.name}")
    click.echo(f"next: stablab analyze {path.name}" + (f" --runs-dir {runs_dir}" if runs_dir else ""))
