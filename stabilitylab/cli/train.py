"""``stablab train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stabilitylab.cli.options import runs_dir
from stabilitylab.config import Config, parse_override, read_toml, resolve, set_key

# flag -> configuration key
_FLAGS = {
    "method": "method.name",
    "arch": "model.arch",
    "img_size": "model.img_size",
    "patch_size": "model.patch_size",
    "data": "data.name",
    "iterations": "train.iterations",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "base_lr": "optim.base_lr",
    "seed": "train.seed",
    "device": "train.device",
}


@click.command()
@click.option("--log-grads", is_flag=True, help="Record every layer's gradient at every iteration.")
@click.option("--method", metavar="NAME", help="mocov3.")
@click.option(
    "--arch",
    metavar="NAME",
    help="vit_{nano,tiny,small,base,large,huge}[_patchP[_SIZE]], resnet18, resnet50.",
)
@click.option("--img-size", type=int, metavar="PIXELS", help="Side of the input image.")
@click.option("--patch-size", type=int, metavar="PIXELS", help="Side of a patch.")
@click.option("--data", metavar="NAME[:DIR]", help="digits, fashion-mnist:DIR or imagefolder:DIR.")
@click.option(
    "--mitigation",
    metavar="NAME[:VALUE]",
    multiple=True,
    help="frozen-patch, clip-patch:T, clip-global:T or none. Repeatable.",
)
@click.option("--iterations", type=int, metavar="N", help="Length of the run in iterations.")
@click.option("--epochs", type=float, metavar="N", help="Length of the run in epochs.")
@click.option("--batch-size", type=int, metavar="N", help="Images in a batch, over all devices.")
@click.option("--base-lr", type=float, metavar="LR", help="lr = base_lr x batch_size / 256.")
@click.option("--seed", type=int, metavar="N", help="Fixes initialisation, data order and views.")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda or mps.")
@click.option("--config", "config_file", metavar="FILE", help="A TOML file; flags go on top of it.")
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Any configuration key, e.g. optim.base_lr=1e-3. Repeatable.",
)
@click.option("--name", metavar="RUN", help="The run's name. Default: the next run_NNN.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and stop.")
@runs_dir
def command(
    log_grads: bool,
    mitigation: tuple[str, ...],
    config_file: str | None,
    overrides: tuple[str, ...],
    name: str | None,
    dry_run: bool,
    runs_dir: str | None,
    **flags: Any,
) -> None:
    """Train a self-supervised encoder and record how it trains.

    Starts from the recipe of the data set: a small ViT on scikit-learn's digits by default, the paper's
    MoCo v3 recipe for an image folder.

    \b
    stablab train --log-grads
    stablab train --log-grads --base-lr 6.4e-2 --mitigation frozen-patch
    """
    config = _configuration(log_grads, mitigation, config_file, overrides, flags)
    if dry_run:
        click.echo(config.to_toml(), nl=False)
        return
    _train(config, runs_dir, name)


def _configuration(
    log_grads: bool,
    mitigation: tuple[str, ...],
    config_file: str | None,
    overrides: tuple[str, ...],
    flags: dict[str, Any],
) -> Config:
    from_flags: dict[str, Any] = {}
    for flag, value in flags.items():
        if value is not None:
            set_key(from_flags, _FLAGS[flag].split("."), value)
    if log_grads:
        set_key(from_flags, ["record", "log_grads"], True)
    if mitigation:
        from_flags["mitigation"] = [m for m in mitigation if m != "none"]
    from_set: dict[str, Any] = {}
    for text in overrides:
        set_key(from_set, *parse_override(text))
    return resolve(read_toml(config_file) if config_file else {}, from_flags, from_set)


def _train(config: Config, runs_dir: str | None, name: str | None) -> None:
    from stabilitylab.cli.progress import TrainingProgress
    from stabilitylab.experiments import train_run
    from stabilitylab.store.location import runs_root

    def started(path: Path) -> None:
        progress.say(f"run {path.name} in {path}")

    with TrainingProgress() as progress:
        finished = train_run(config, runs_root(runs_dir), name, progress.update, started)
    result, run = finished.result, finished.path.name
    knn = "" if result.knn_top1 is None else f", kNN top-1 {result.knn_top1:.3f}"
    ending = f"stopped: {result.stopped}" if result.stopped else f"{result.iterations} iterations"
    click.echo(f"{run}: {ending}{knn}")
    where = f" --runs-dir {runs_dir}" if runs_dir else ""
    click.echo(f"next: stablab {'analyze' if config.record.log_grads else 'report'} {run}{where}")
