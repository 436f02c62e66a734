"""``stablab probe``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from stabilitylab.cli.options import runs_dir

if TYPE_CHECKING:
    from stabilitylab.train.probe import ProbeResult


def _share(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise click.BadParameter(f"{text!r} is not a share of the labels; write 1%, 10% or 0.1")
    return share


@click.command()
@click.argument("run")
@click.option("--linear", is_flag=True, help="Train a linear classifier on the frozen features, with all labels.")
@click.option("--labels", metavar="SHARE", callback=_share, help="The same with a fraction of the labels: 1%, 10%.")
@click.option("--knn", is_flag=True, help="Weighted kNN, as during training.")
@click.option(
    "--epochs", default=90, show_default=True, type=click.IntRange(1), help="Epochs of the linear classifier."
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Batch size of the linear classifier. Default: 1024, or an eighth of the labelled images if that is less.",
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or mps.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@runs_dir
def command(
    run: str,
    linear: bool,
    labels: float | None,
    knn: bool,
    epochs: int,
    batch_size: int | None,
    device: str,
    form: str,
    runs_dir: str | None,
) -> None:
    """Evaluate the features of RUN's last checkpoint. Default: --linear and --knn.

    The linear classifier follows the protocol of the MoCo v3 release. Its learning rate is chosen on a tenth of the
    training images, never on the held-out ones. Under torchrun the processes share the images. Results are written to
    the run's table evals.
    """
    from stabilitylab.store.location import find_run, runs_root
    from stabilitylab.studies import probe_run
    from stabilitylab.train.distributed import describe, leave

    everything = not (linear or labels is not None or knn)
    shares = ([1.0] if linear or everything else []) + ([labels] if labels is not None else [])
    try:
        results = probe_run(
            find_run(runs_root(runs_dir), run),
            shares=shares,
            knn=knn or everything,
            epochs=epochs,
            batch_size=batch_size,
            device=device,
        )
    finally:
        leave()
    if not describe().main:
        return
    if form == "json":
        click.echo(json.dumps({"schema": 1, "run": run, "results": [asdict(r) for r in results]}, indent=2))
        return
    for result in results:
        click.echo(_line(result))


def _line(result: ProbeResult) -> str:
    how = ""
    if result.base_lr is not None and result.num_choice:
        edge = result.base_lr in (result.sweep[0][0], result.sweep[-1][0])
        how = f"  base lr {result.base_lr:g}, chosen on {result.num_choice} training images"
        how += " (the end of the sweep)" if edge else ""
    elif result.base_lr is not None:
        how = f"  base lr {result.base_lr:g}, not chosen: too few labels"
    return f"{result.metric:<20}{result.value:.4f}  {result.num_samples} images, {result.num_labels} labels{how}"
