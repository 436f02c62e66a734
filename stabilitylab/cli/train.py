"""``stablab train``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stabilitylab.cli.options import runs_dir
from stabilitylab.config import OPTIMIZERS, Config, parse_override, read_toml, resolve, set_key
from stabilitylab.datasets import describe_datasets
from stabilitylab.errors import ConfigError
from stabilitylab.methods import METHODS
from stabilitylab.train.mitigations import describe_mitigations

if TYPE_CHECKING:
    from stabilitylab.studies import FinishedRun

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
    "micro_batch": "train.micro_batch",
    "optimizer": "optim.name",
    "amp": "train.amp",
    "on_nan": "train.on_nan",
    "base_lr": "optim.base_lr",
    "seed": "train.seed",
    "device": "train.device",
}


@click.command()
@click.option("--log-grads", is_flag=True, help="Record every layer's gradient at every iteration.")
@click.option("--method", metavar="NAME", help=f"{', '.join(METHODS)}.")
@click.option(
    "--arch",
    metavar="NAME",
    help="vit_{nano,tiny,small,base,large,huge}[_patchP[_SIZE]], resnet18, resnet50.",
)
@click.option("--img-size", type=int, metavar="PIXELS", help="Side of the input image.")
@click.option("--patch-size", type=int, metavar="PIXELS", help="Side of a patch.")
@click.option(
    "--data",
    metavar="NAME[:DIR]",
    help=f"{describe_datasets()}.",
)
@click.option(
    "--mitigation",
    metavar="NAME[:VALUE]",
    multiple=True,
    help=f"{describe_mitigations()} or none. Repeatable.",
)
@click.option("--iterations", type=int, metavar="N", help="Length of the run in iterations.")
@click.option("--epochs", type=float, metavar="N", help="Length of the run in epochs.")
@click.option("--batch-size", type=int, metavar="N", help="Batch size over all devices.")
@click.option("--micro-batch", type=int, metavar="N", help="Images per forward pass; loss and gradient stay exact.")
@click.option("--optimizer", metavar="NAME", help=f"{', '.join(OPTIMIZERS)}.")
@click.option("--base-lr", type=float, metavar="LR", help="lr = base_lr x batch_size / 256.")
@click.option("--seed", type=int, metavar="N", help="Seed of the initialisation, data order and views.")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda or mps.")
@click.option("--amp", metavar="TYPE", help="Mixed precision: off, bf16 or fp16.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the encoders with torch.compile.")
@click.option("--on-nan", metavar="WHAT", help="At a non-finite loss: stop, skip (the update) or continue.")
@click.option("--config", "config_file", metavar="FILE", help="A TOML file. Flags take precedence over it.")
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Any configuration key, e.g. optim.base_lr=1e-3. Repeatable.",
)
@click.option("--skip-list", metavar="FILE", help="Training images to exclude: one index per line, # for comments.")
@click.option("--keep-before-spikes", is_flag=True, help="Keep the checkpoints that precede a gradient spike.")
@click.option("--name", metavar="RUN", help="The run's name. Default: the next run_NNN.")
@click.option("--resume", metavar="RUN", help="Resume a run from its last checkpoint. Allows no other setting.")
@click.option("--plan", is_flag=True, help="Measure five steps, print the time and memory of the run, and exit.")
@click.option("--dry-run", is_flag=True, help="Print the resolved configuration and exit.")
@runs_dir
def command(
    log_grads: bool,
    mitigation: tuple[str, ...],
    config_file: str | None,
    overrides: tuple[str, ...],
    name: str | None,
    resume: str | None,
    compiled: bool,
    skip_list: str | None,
    keep_before_spikes: bool,
    plan: bool,
    dry_run: bool,
    runs_dir: str | None,
    **flags: Any,
) -> None:
    """Train a self-supervised encoder and record how it trains.

    Starts from the recipe of the data set: a small ViT on scikit-learn's digits by default, the paper's
    MoCo v3 recipe for an image folder.

    \b
    stablab train --log-grads
    stablab train --log-grads --base-lr 0.17 --mitigation frozen-patch
    torchrun --nproc-per-node 8 -m stabilitylab train --log-grads --data imagefolder:DIR

    SIGUSR1, SIGUSR2 and SIGTERM end the training with a checkpoint. Under Slurm (#SBATCH --requeue --signal=USR1@120)
    a run with --name then asks to be requeued, and the same command resumes it.
    """
    if resume is not None:
        given = (
            log_grads or mitigation or config_file or overrides or name or compiled or skip_list or keep_before_spikes
        )
        given = given or dry_run or plan
        if given or any(value is not None for value in flags.values()):
            raise click.UsageError("--resume uses the configuration of the run; only --runs-dir can be added")
        _resume(resume, runs_dir)
        return
    if compiled:
        overrides = ("train.compile=true", *overrides)
    if keep_before_spikes:
        overrides = ("train.keep_before_spikes=true", *overrides)
    if skip_list is not None:
        overrides = (f"data.skip={_read_skip_list(skip_list)}", *overrides)
    config = _configuration(log_grads, mitigation, config_file, overrides, flags)
    if dry_run:
        click.echo(config.to_toml(), nl=False)
        return
    if plan:
        _print_plan(config)
        return
    _train(config, runs_dir, name)


def _print_plan(config: Config) -> None:
    from stabilitylab.studies.plan import lines
    from stabilitylab.studies.plan import plan as measure
    from stabilitylab.train.distributed import describe, leave

    try:
        planned = measure(config)
    finally:
        leave()
    if describe().main:
        click.echo("\n".join(lines(planned)))


def _read_skip_list(file: str) -> list[int]:
    """Read indices of images, one per line; # starts a comment. Raises ConfigError with the first invalid line."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the skip list {file}: {getattr(error, 'strerror', error)}") from None
    indices = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text and not text.isdecimal():
            raise ConfigError(f"{file}, line {number}: {text!r} is not the index of an image, e.g. 17")
        if text:
            indices.append(int(text))
    return indices


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
    from stabilitylab.store.location import runs_root
    from stabilitylab.studies import train_run
    from stabilitylab.studies.requeue import check_same, is_restart

    root = runs_root(runs_dir)
    if (
        name is not None and is_restart() and (root / name).is_dir()
    ):  # requeued by Slurm: the same command resumes its run
        check_same(root / name, config)
        _resume(name, runs_dir)
        return
    _show(
        lambda progress, started: train_run(config, root, name, progress, started, interruptible=True), runs_dir, name
    )


def _resume(run: str, runs_dir: str | None) -> None:
    from stabilitylab.store.location import find_run, runs_root
    from stabilitylab.studies import resume_run

    run_dir = find_run(runs_root(runs_dir), run)
    _show(lambda progress, started: resume_run(run_dir, progress, started, interruptible=True), runs_dir, run_dir.name)


def _show(train: Callable[..., FinishedRun], runs_dir: str | None, name: str | None) -> None:
    """Train with a progress bar, then print the run and the next command. Only rank 0 prints.

    If a signal ended the training and the run has a ``name``, it is requeued in Slurm.
    """
    from stabilitylab.cli.progress import TrainingProgress
    from stabilitylab.studies.requeue import requeue
    from stabilitylab.train.distributed import leave

    def started(path: Path) -> None:
        progress.say(f"run {path.name} in {path}")

    try:
        with TrainingProgress() as progress:
            finished = train(progress.update, started)
    finally:
        leave()
    if finished.path == Path():
        return
    result, run = finished.result, finished.path.name
    knn = "" if result.knn_top1 is None else f", kNN top-1 {result.knn_top1:.3f}"
    ending = f"stopped: {result.stopped}" if result.stopped else f"{result.iterations} iterations"
    click.echo(f"{run}: {ending}{knn}")
    where = f" --runs-dir {runs_dir}" if runs_dir else ""
    if not result.interrupted:
        click.echo(f"next: stablab analyze {run}{where}")
        return
    if name is not None and requeue():
        click.echo("requeued: the same command resumes it")
        return
    click.echo(f"next: stablab train --resume {run}{where}")
    sys.exit(128 + signal.Signals[result.interrupted])
