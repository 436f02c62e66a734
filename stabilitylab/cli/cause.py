"""``stablab cause``: causal experiments on a run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stabilitylab.cli.branch import command as branch
from stabilitylab.cli.groups import Group
from stabilitylab.cli.options import runs_dir
from stabilitylab.errors import ConfigError

if TYPE_CHECKING:
    from stabilitylab.cause.replay import Replay
    from stabilitylab.run.experiments import Experiment


class Iterations(click.ParamType):
    """Iterations as ``400,600`` or as a Python range ``400:600:50``."""

    name = "iterations"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        values: list[int] = []
        for part in str(value).split(","):
            numbers = part.split(":")
            if not all(n.strip().isdecimal() for n in numbers) or len(numbers) > 3:
                self.fail(f"{part!r} is not an iteration; write 400,600 or 400:600:50", param, ctx)
            bounds = [int(n) for n in numbers]
            if len(bounds) == 3 and not bounds[2]:
                self.fail(f"{part!r} has a step of 0", param, ctx)
            values += range(*bounds) if len(bounds) > 1 else bounds
        if not values:
            self.fail(f"{value!r} contains no iteration", param, ctx)
        return sorted(set(values))


@click.group(cls=Group)
def command() -> None:
    """Causal experiments on a run.

    A run of `stablab train` can be replayed bit for bit from its checkpoints, so it can be changed in one place and
    compared with the original. Each experiment first replays recorded iterations and compares the norms, and prints its
    cost. The result is saved in the run's folder and shown in the report. The run itself is not changed.

    \b
    stablab train --log-grads --set train.checkpoint_every=50 --set train.checkpoint_keep=20
    stablab cause impulse run_001 --layer patch_embed,blocks.2,predictor --at 400:520:20
    stablab cause swap run_001 --at 437
    stablab cause blame run_001 --at 437
    stablab cause sharpness run_001 --at 300:500:50
    """


command.add_command(branch, "branch")


@command.command(short_help="Perturb one layer: does instability travel?")
@click.argument("run")
@click.option("--layer", "layers", required=True, metavar="NAME,...", help="The layers to kick.")
@click.option("--at", required=True, type=Iterations(), metavar="ITER,...", help="The iterations before which to kick.")
@click.option("--size", default=0.5, show_default=True, type=click.FloatRange(0), help="Relative size of a kick.")
@click.option("--of", default="weights", show_default=True, type=click.Choice(["weights", "gradient"]))
@click.option("--kicks", default=4, show_default=True, type=click.IntRange(1), help="Kicks per layer and iteration.")
@click.option("--horizon", default=60, show_default=True, type=click.IntRange(4), help="Iterations to follow.")
@click.option("--metric-every", default=0, type=click.IntRange(0), metavar="N", help="Evaluate every N iterations.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the directions.")
@runs_dir
def impulse(
    run: str,
    layers: str,
    at: list[int],
    size: float,
    of: str,
    kicks: int,
    horizon: int,
    metric_every: int,
    seed: int,
    runs_dir: str | None,
) -> None:
    """Perturb ("kick") one layer once and measure all layers: does instability travel from first to last, or back?

    Two continuations see the same batches. In one of them, the weights of a layer are moved in a random direction by
    SIZE times their norm (or its gradient is multiplied once by 1 + SIZE). The response is the difference of their log
    norms.
    """
    from stabilitylab.cause.experiments import save_impulse
    from stabilitylab.cause.impulses import impulse_run
    from stabilitylab.cause.kicks import planned_futures

    names = list(dict.fromkeys(name.strip() for name in layers.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"--layer {layers!r} names no layer")
    replay = _open(run, runs_dir)
    for name in names:
        replay.layer(name)
    replay.require(at, horizon)
    click.echo(replay.check(min(at)))
    futures = planned_futures(names, at, kicks, of)
    evaluations = futures * (horizon // metric_every) if metric_every else 0
    cost = Cost(replay, min(at), futures * horizon + sum(map(replay.distance, at)), evaluations)
    cost.say(f"{futures} continuations of {horizon} iterations")
    settings: dict[str, Any] = {"layers": names, "at": at, "size": size, "of": of, "kicks": kicks, "horizon": horizon}
    settings |= {"metric_every": metric_every, "seed": seed}
    _show(save_impulse(replay.run_dir, impulse_run(replay, progress=cost.progress, **settings), settings), cost)


@command.command(short_help="Does a spike come from the batch or the state?")
@click.argument("run")
@click.option("--at", required=True, type=click.IntRange(0), metavar="ITER", help="The iteration of the spike.")
@click.option("--layer", metavar="NAME", help="The layer of the spike. Default: the one that leads.")
@click.option("--repeats", default=8, show_default=True, type=click.IntRange(2), help="Repeats per cell.")
@click.option("--lead", type=click.IntRange(0), metavar="N", help="Take the state N iterations before ITER.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the other batches.")
@runs_dir
def swap(run: str, at: int, layer: str | None, repeats: int, lead: int | None, seed: int, runs_dir: str | None) -> None:
    """Does a spike come from the batch or from the state? Combines its batches with older states, and its state with
    other batches."""
    from stabilitylab.cause.experiments import save_swap
    from stabilitylab.cause.swap import plan_swap, swap_run

    replay = _open(run, runs_dir)
    plan = plan_swap(replay, at, repeats, lead)
    click.echo(replay.check(plan.state_at))
    cost = Cost(replay, plan.state_at, plan.iterations)
    cost.say(f"{1 + repeats + 2 * len(plan.others)} continuations of {plan.length} iterations")
    result = swap_run(replay, at=at, layer=layer, repeats=repeats, lead=lead, seed=seed, progress=cost.progress)
    settings = {"at": at, "layer": layer, "repeats": repeats, "lead": lead, "seed": seed}
    _show(save_swap(replay.run_dir, result, settings), cost)


@command.command(short_help="Rank the images of a batch.")
@click.argument("run")
@click.option("--at", required=True, type=click.IntRange(0), metavar="ITER", help="The iteration whose batch it is.")
@click.option("--layer", metavar="NAME", help="Whose gradient is shared out. Default: the layer that leads.")
@click.option("--how", type=click.Choice(["rows", "leave-one-out"]), help="Default: rows, where they split it exactly.")
@click.option(
    "--by", default="outlier", show_default=True, type=click.Choice(["outlier", "part", "novelty"]), help="Ranked by."
)
@click.option("--top", default=8, show_default=True, type=click.IntRange(1), help="Images in the list and the sheet.")
@click.option("-o", "--output", metavar="FILE", help="The list, for `stablab train --skip-list FILE`.")
@runs_dir
def blame(
    run: str, at: int, layer: str | None, how: str | None, by: str, top: int, output: str | None, runs_dir: str | None
) -> None:
    """Which images of a batch are to blame? Ranks them, with a contact sheet of the views.

    \b
    outlier  how unusual the image is: its features or the gap between its two views, averaged
             over 32 draws of views, among the images of neighbouring batches, or its contribution
             to the gradient. Finds blank, saturated and mispaired images whose gradient is small.
    part     the norm of its contribution to the layer's gradient
    novelty  how much of the contribution's direction no other image shares

    Contribution: rows, the gradient that flows through the rows of the image; leave-one-out, the change of the gradient
    without the image.
    """
    from stabilitylab.cause.blame import blame_run, seconds_to_blame, seconds_to_draw
    from stabilitylab.cause.experiments import save_blame

    if output is not None and Path(output).exists():
        raise ConfigError(f"{output} already exists; choose another file")
    if output is not None and not Path(output).parent.is_dir():
        raise ConfigError(f"the folder of {output} does not exist; create it first")
    replay = _open(run, runs_dir)
    replay.require([at])
    if layer is not None:
        replay.layer(layer)
    click.echo(replay.check(at))
    cost = Cost(replay, at, replay.distance(at))
    cost.seconds += seconds_to_blame(replay, at, layer, how, by) + seconds_to_draw(replay, at, top)
    cost.say(f"one batch of {replay.trainer.config.train.batch_size} images")
    result = blame_run(replay, at=at, layer=layer, how=how, by=by, top=top)
    for image in result.images:
        odd = "" if image.outlier is None else f", outlier {image.outlier:.1f}"
        click.echo(
            f"  image {image.index:>6}  {image.norm:6.1%} of the gradient's size, {image.share:+6.1%} along it, "
            f"novelty {image.novelty:.2f}{odd}"
        )
    if output is not None:
        Path(output).write_text(result.skip_list(), encoding="utf-8")
        click.echo(f"list: {output}")
    settings = {"at": at, "layer": layer, "how": how, "by": by, "top": top}
    _show(save_blame(replay.run_dir, result, settings, skip_list=output), cost)


@command.command(short_help="Compare the curvature with the learning rate.")
@click.argument("run")
@click.option("--at", required=True, type=Iterations(), metavar="ITER,...", help="E.g. 400,600 or 400:600:50.")
@click.option("--steps", default=24, show_default=True, type=click.IntRange(2), help="Lanczos steps.")
@click.option("--whole", is_flag=True, help="Only the whole model, not each layer.")
@runs_dir
def sharpness(run: str, at: list[int], steps: int, whole: bool, runs_dir: str | None) -> None:
    """Is the curvature of the loss too large for the learning rate? Compares it with the edge of stability.

    For AdamW: the largest eigenvalue of the preconditioned Hessian compared with 38 / lr (for beta1 = 0.9). Also the
    curvature along the gradient compared with 2 / lr, the edge of plain gradient descent.
    """
    from stabilitylab.cause.experiments import save_sharpness
    from stabilitylab.cause.sharpness import plain, seconds_per_iteration, sharpness_run

    replay = _open(run, runs_dir)
    replay.require(at)
    click.echo(replay.check(min(at)))
    parts = 1 if whole else 1 + sum(layer.trainable for layer in replay.layers)
    cost = Cost(replay, min(at), sum(map(replay.distance, at)))
    cost.seconds += len(at) * seconds_per_iteration(replay, min(at), steps, not whole)
    cost.say(f"{len(at)} iterations, {parts} part{'s' if parts > 1 else ''} of the network, {steps} Lanczos steps each")
    result = sharpness_run(replay, at=at, by_layer=not whole, steps=steps, progress=cost.progress)
    for c in result.curvatures:
        edge = "edge unknown" if c.edge is None else f"{c.eigenvalue / c.edge:.3g} of the edge {c.edge:.3g}"
        click.echo(
            f"  {c.iteration:>7}  {c.layer:<14} {c.eigenvalue:9.3g} +- {plain(c.error)}  {edge}: {c.verdict};  "
            f"along the gradient {c.directional:.3g}, 2 / lr {c.gradient_edge:.3g}"
        )
    _show(save_sharpness(replay.run_dir, result, {"at": at, "steps": steps, "whole": whole}), cost)


@command.command(short_help="Kick the runs of a grid and test claims.")
@click.argument("file", metavar="FILE.toml")
@click.option("--collect", is_flag=True, help="Run nothing; only summarise finished runs.")
@click.option("-o", "--output", metavar="DIR", help="Folder of the summary. Default: reports/<study>.")
@runs_dir
def study(file: str, collect: bool, output: str | None, runs_dir: str | None) -> None:
    """Run impulse experiments over a grid of runs, and test claims about them.

    \b
    stablab cause study experiments/cause/impulse.toml
    """
    from stabilitylab.cause.claims import judge
    from stabilitylab.cause.study import load_impulse_study, run_impulse_study, write_impulse_study
    from stabilitylab.store.location import runs_root

    path = Path(file)
    planned = load_impulse_study(path)
    click.echo(f"{planned.title}: {len(planned.runs)} runs")
    say = lambda text: click.echo(text, err=True)  # noqa: E731
    impulses = run_impulse_study(planned, runs_root(runs_dir), say, collect=collect)
    if not impulses:
        raise ConfigError(f"no run of {file} is finished; run the command without --collect")
    verdicts = judge(planned.claims, planned.runs, impulses)
    folder = Path(output) if output else Path("reports") / path.stem
    write_impulse_study(planned, impulses, folder, verdicts)
    for verdict in verdicts:
        click.echo(f"{verdict.verdict}: {verdict.text} ({verdict.reason})")
    click.echo(f"summary: {folder}, {len(impulses)} of {len(planned.runs)} runs")


def _open(run: str, runs_dir: str | None) -> Replay:
    from stabilitylab.cause.replay import Replay
    from stabilitylab.store.location import find_run, runs_root

    return Replay(find_run(runs_root(runs_dir), run))


class Cost:
    """The expected duration of an experiment, measured on a few of its iterations, and the actual one."""

    def __init__(self, replay: Replay, at: int, iterations: int, evaluations: int = 0) -> None:
        self.iterations = iterations
        self.seconds = iterations * replay.seconds_per_step(at)
        if evaluations:
            self.seconds += evaluations * replay.seconds_per_evaluation()
        self._began = time.perf_counter()

    def say(self, what: str) -> None:
        click.echo(f"cost: {what}, about {_time(self.seconds)}")
        self._began = time.perf_counter()

    def progress(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{done}/{total}", nl=done == total, err=True)

    @property
    def took(self) -> str:
        return _time(time.perf_counter() - self._began)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _show(experiment: Experiment, cost: Cost) -> None:
    click.echo(experiment.sentence)
    click.echo(f"took {cost.took}; saved in {experiment.path}")
    for text in experiment.next:
        click.echo(f"next: {text}")
