"""``stablab import``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stabilitylab.cli.groups import Group
from stabilitylab.cli.options import runs_dir

if TYPE_CHECKING:
    from stabilitylab.importers.write import Imported

MOST_NOTES = 30


@click.group(name="import", cls=Group)
def command() -> None:
    """Import the logs of another tool as a run. `auto` detects the format of a file or folder."""


_name = click.option("--name", metavar="RUN", help="The run's name. Default: the next run_NNN.")
_strict = click.option("--strict", is_flag=True, help="Reject logs with unreadable rows.")
_step = click.option("--step", metavar="COLUMN", help="The column (or key) of the step.")
_grads = click.option(
    "--grads",
    "--grad-tag",
    "grads",
    metavar="PATTERN",
    help="The gradient-norm series: a name in which * stands for the layer, or a regular expression with a group "
    "(?P<layer>...). Default: names like grad_norm/LAYER, gradients/LAYER, LAYER/grad_norm, grad_norm.",
)
_loss = click.option("--loss", metavar="NAME", help="The series of the training loss.")
_metric = click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME[:percent][:min]",
    help="A series that is an evaluation metric. Repeatable. Names with val, eval, test or knn are detected.",
)


@command.command("auto")
@click.argument("path", metavar="PATH")
@_name
@_step
@_grads
@_loss
@_metric
@click.option(
    "--pattern",
    metavar="REGEX",
    help="A regular expression for the lines of a text log, with groups (?P<step>...) and one per series, e.g. "
    "(?P<grad_norm>...); or (?P<layer>...) with (?P<norm>...).",
)
@_strict
@runs_dir
def auto(path: str, name: str | None, runs_dir: str | None, **options: Any) -> None:
    """Import a log. The format is detected and printed.

    \b
    TensorBoard, Weights & Biases (CSV, JSON lines, offline runs), Hugging Face (trainer_state.json, a folder of
    checkpoints), Lightning (metrics.csv), MLflow, Comet, Neptune, Aim, ClearML, trackio, text logs (Megatron-LM,
    llm.c, modded-nanogpt, DINO, MAE, Swin), CSV, Parquet, JSON lines.

    Limitations of the data are printed at the end and stored in the run's events.
    """
    _import(Path(path), None, name, runs_dir, options)


@command.command("csv", short_help="Import gradient norms from CSV files.")
@click.option("--grads", required=True, metavar="FILE", help="iteration,layer,grad_norm[,grad_max][,depth]")
@click.option(
    "--scalars", metavar="FILE", help="iteration,name,value[,num_samples]; knn_top1 and loss are known names."
)
@_name
@runs_dir
def from_csv(grads: str, scalars: str | None, name: str | None, runs_dir: str | None) -> None:
    """Import gradient norms, and optionally scalars, from CSV files. Any invalid row is an error; `auto` reads more
    kinds of CSV files and skips invalid rows."""
    from stabilitylab.importers.csv import write_csv
    from stabilitylab.store.location import runs_root

    run = write_csv(runs_root(runs_dir), Path(grads), Path(scalars) if scalars else None, name)
    _print_imported(run)
    _next(run.path.name, runs_dir)


@command.command("tensorboard", short_help="Import TensorBoard event files.")
@click.argument("folder", metavar="DIR")
@_grads
@_name
@_loss
@_metric
@_strict
@runs_dir
def from_tensorboard(folder: str, name: str | None, runs_dir: str | None, **options: Any) -> None:
    """Import the TensorBoard event files below DIR: scalars, and histograms of gradients."""
    _import(Path(folder), "tensorboard", name, runs_dir, options)


@command.command("wandb", short_help="Import from Weights & Biases.")
@click.argument("file", metavar="FILE")
@_grads
@_name
@_step
@_loss
@_metric
@_strict
@runs_dir
def from_wandb(file: str, name: str | None, runs_dir: str | None, **options: Any) -> None:
    """Import from Weights & Biases: CSV from the web page, history as CSV or JSON lines, an offline run (.wandb)."""
    _import(Path(file), "wandb", name, runs_dir, options)


def _import(path: Path, format: str | None, name: str | None, root: str | None, options: dict[str, Any]) -> None:
    """Import, then print the roles of the series, limitations of the data, and the next command."""
    from stabilitylab.importers.options import Options, parse_metric
    from stabilitylab.importers.registry import IMPORTERS, import_log
    from stabilitylab.store.location import runs_root

    metrics = tuple(parse_metric(text) for text in options.pop("metrics"))
    made = import_log(runs_root(root), path, Options(metrics=metrics, **options), format=format, name=name)
    click.echo(f"{path.name}: {IMPORTERS[made[0].format].title}" + (f", {len(made)} runs" if len(made) > 1 else ""))
    for run in made:
        _print_imported(run)
    _next(made[0].path.name, root)


def _print_imported(run: Imported) -> None:
    click.echo(f"imported as {run.path.name}" + (f" ({run.run})" if run.run else ""))
    layers = f"{_count(len(run.layers), 'layer')} ({_some(run.layers)})" if run.layers else "no layers"
    click.echo(f"  {layers}, {run.rows:,} rows, {run.iterations:,} iterations")
    parts = [f"loss: {run.loss}" if run.loss else "", f"metrics: {_some(run.metrics)}" if run.metrics else ""]
    parts.append(f"{_count(run.scalars, 'other series')}" if run.scalars else "")
    if any(parts):
        click.echo("  " + "; ".join(part for part in parts if part))
    for note in run.notes[:MOST_NOTES]:
        click.echo(f"  note ({note.kind}): {note.text}")
    if len(run.notes) > MOST_NOTES:
        click.echo(f"  {len(run.notes) - MOST_NOTES} more notes are in the run's events")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 or what.endswith("s") else "s")


def _some(names: Sequence[str]) -> str:
    """Up to six names; of more, the first three and the last."""
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:3])} ... {names[-1]}"


def _next(name: str, root: str | None) -> None:
    click.echo(f"next: stablab analyze {name}" + (f" --runs-dir {root}" if root else ""))
