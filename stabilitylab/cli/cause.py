"""``stablab cause``: experiments on a run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stabilitylab.cli.branch import command as branch
from stabilitylab.cli.options import runs_dir
from stabilitylab.errors import ConfigError

if TYPE_CHECKING:
    from stabilitylab.cause.replay import Replay
    from stabilitylab.run.experiments import Experiment


class Iterations(click.ParamType):
    """``400,600`` or ``400:600:50``, as Python counts."""

    name = "iterations"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        found: list[int] = []
        for part in str(value).split(","):
            numbers = part.split(":")
            if not all(n.strip().isdecimal() for n in numbers) or len(numbers) > 3:
                self.fail(f"{part!r} is not an iteration; write 400,600 or 400:600:50", param, ctx)
            bounds = [int(n) for n in numbers]
            if len(bounds) == 3 and not bounds[2]:
                self.fail(f"{part!r} has a step of 0", param, ctx)
            found += range(*bounds) if len(bounds) > 1 else bounds
        if not found:
            self.fail(f"{value!r} names no iteration", param, ctx)
        return sorted(set(found))


@click.group()
def command() -> None:
    """Experiments on a run: what caused it?

    A run of `stablab train` replays bit for bit from its checkpoints, so it can be changed in one place and compared
    with itself. Each experiment first replays a recorded iteration and compares its norms, prints its cost, and is kept
    in the run's folder, where the report shows it. Nothing of the run is changed.

    \b
    stablab train --log-grads --set train.checkpoint_every=50 --set train.checkpoint_keep=20
    stablab cause impulse run_001 --layer patch_embed,blocks.2,predictor --at 400:520:20
    stablab cause swap run_001 --at 437
    stablab cause blame run_001 --at 437
    stablab cause sharpness run_001 --at 300:500:50
    """


command.add_command(branch, "branch")


@command.command()
@click.argument("run")
@click.option("--layer", "layers", required=True, metavar="NAME,...", help="The layers to kick.")
@click.option("--at", required=True, type=Iterations(), metavar="ITER,...", help="The iterations to kick before.")
@click.option("--size", default=0.5, show_default=True, type=click.FloatRange(0), help="Of a kick, relative.")
@click.option("--of", default="weights", show_default=True, type=click.Choice(["weights", "gradient"]))
@click.option("--kicks", default=4, show_default=True, type=click.IntRange(1), help="Directions a layer and iteration.")
@click.option("--horizon", default=60, show_default=True, type=click.IntRange(4), help="Iterations to watch.")
@click.option("--metric-every", default=0, type=click.IntRange(0), metavar="N", help="Evaluate every N iterations.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Fixes the directions.")
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
    """Kick one layer once and watch all: does instability travel from the first layer to the last, or back?

    Two futures see the same batches; in one, a layer's last update is displaced in a random direction by SIZE times
    its weights (or its gradient is multiplied once by 1 + SIZE). The response is the difference of their log norms.
    """
    from stabilitylab.cause.experiments import save_impulse
    from stabilitylab.cause.impulses import impulse_run, planned_futures

    replay = _open(run, runs_dir)
    names = list(dict.fromkeys(name.strip() for name in layers.split(",") if name.strip()))
    for name in names:
        replay.layer(name)
    replay.require(at, horizon)
    click.echo(replay.check(min(at)))
    futures = planned_futures(names, at, kicks, of)
    evaluations = futures * (horizon // metric_every) if metric_every else 0
    cost = Cost(replay, min(at), futures * horizon + sum(map(replay.distance, at)), evaluations)
    cost.say(f"{futures} futures of {horizon} iterations")
    settings: dict[str, Any] = {"layers": names, "at": at, "size": size, "of": of, "kicks": kicks, "horizon": horizon}
    settings |= {"metric_every": metric_every, "seed": seed}
    _show(save_impulse(replay.run_dir, impulse_run(replay, progress=cost.progress, **settings), settings), cost)


@command.command()
@click.argument("run")
@click.option("--at", required=True, type=click.IntRange(0), metavar="ITER", help="The iteration of the spike.")
@click.option("--layer", metavar="NAME", help="The layer whose spike it is. Default: the one that leads.")
@click.option("--repeats", default=8, show_default=True, type=click.IntRange(2), help="Of each cell.")
@click.option("--lead", type=click.IntRange(0), metavar="N", help="Take the state N iterations before ITER.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Fixes the other batches.")
@runs_dir
def swap(run: str, at: int, layer: str | None, repeats: int, lead: int | None, seed: int, runs_dir: str | None) -> None:
    """Was it the batch, or the state? The spike's batches from older states, other batches from the spike's state."""
    from stabilitylab.cause.experiments import save_swap
    from stabilitylab.cause.swap import plan_swap, swap_run

    replay = _open(run, runs_dir)
    plan = plan_swap(replay, at, repeats, lead)
    click.echo(replay.check(plan.state_at))
    cost = Cost(replay, plan.state_at, plan.iterations)
    cost.say(f"{1 + repeats + 2 * len(plan.others)} futures of {plan.length} iterations")
    result = swap_run(replay, at=at, layer=layer, repeats=repeats, lead=lead, seed=seed, progress=cost.progress)
    settings = {"at": at, "layer": layer, "repeats": repeats, "lead": lead, "seed": seed}
    _show(save_swap(replay.run_dir, result, settings), cost)


@command.command()
@click.argument("run")
@click.option("--at", required=True, type=click.IntRange(0), metavar="ITER", help="The iteration whose batch it is.")
@click.option("--layer", metavar="NAME", help="Whose gradient is shared out. Default: the layer that leads.")
@click.option("--how", type=click.Choice(["rows", "leave-one-out"]), help="Default: rows, where they split it exactly.")
@click.option("--by", default="part", show_default=True, type=click.Choice(["part", "novelty"]), help="Ranked by.")
@click.option("--top", default=8, show_default=True, type=click.IntRange(1), help="Images in the list and the sheet.")
@click.option("-o", "--output", metavar="FILE", help="The list, for `stablab train --skip-list FILE`.")
@runs_dir
def blame(
    run: str, at: int, layer: str | None, how: str | None, by: str, top: int, output: str | None, runs_dir: str | None
) -> None:
    """Which images of a batch make the gradient? Ranks them by their part, with a contact sheet of their views.

    rows: the gradient that flows through each image's own rows. leave-one-out: the gradient without the image. By
    the size of its part, or by its novelty: how much of the part's direction no other image shares, which finds blank
    and saturated images whose gradient is not large.
    """
    from stabilitylab.cause.blame import blame_run
    from stabilitylab.cause.experiments import save_blame

    if output is not None and Path(output).exists():
        raise ConfigError(f"{output} is there already; give another file")
    replay = _open(run, runs_dir)
    replay.require([at])
    if layer is not None:
        replay.layer(layer)
    click.echo(replay.check(at))
    passes = replay.trainer.config.train.batch_size if how == "leave-one-out" else 4
    cost = Cost(replay, at, replay.distance(at) + passes)
    cost.say(f"one batch of {replay.trainer.config.train.batch_size} images")
    result = blame_run(replay, at=at, layer=layer, how=how, by=by, top=top)
    for image in result.images:
        click.echo(
            f"  image {image.index:>6}  {image.norm:6.1%} of the gradient's size, {image.share:+6.1%} along it, "
            f"novelty {image.novelty:.2f}"
        )
    if output is not None:
        Path(output).write_text(result.skip_list(), encoding="utf-8")
        click.echo(f"list: {output}; next: stablab train --skip-list {output}")
    _show(save_blame(replay.run_dir, result, {"at": at, "layer": layer, "how": how, "by": by, "top": top}), cost)


@command.command()
@click.argument("run")
@click.option("--at", required=True, type=Iterations(), metavar="ITER,...", help="E.g. 400,600 or 400:600:50.")
@click.option("--steps", default=24, show_default=True, type=click.IntRange(2), help="Lanczos steps.")
@click.option("--whole", is_flag=True, help="All layers together only.")
@runs_dir
def sharpness(run: str, at: list[int], steps: int, whole: bool, runs_dir: str | None) -> None:
    """Is the loss too curved for the learning rate? Its largest curvature against the edge of stability.

    For AdamW the largest eigenvalue of the preconditioned Hessian against 38 / lr (at beta1 0.9); beside it the
    curvature along the gradient against 2 / lr, the edge of plain gradient descent.
    """
    from stabilitylab.cause.experiments import save_sharpness
    from stabilitylab.cause.sharpness import seconds_per_product, sharpness_run

    replay = _open(run, runs_dir)
    replay.require(at)
    click.echo(replay.check(min(at)))
    parts = 1 if whole else 1 + sum(layer.trainable for layer in replay.layers)
    cost = Cost(replay, min(at), sum(map(replay.distance, at)))
    cost.seconds += len(at) * parts * (steps + 3) * seconds_per_product(replay, min(at))
    cost.say(f"{len(at)} iterations, {parts} part{'s' if parts > 1 else ''} of the network, {steps} Lanczos steps each")
    result = sharpness_run(replay, at=at, by_layer=not whole, steps=steps, progress=cost.progress)
    for c in result.curvatures:
        edge = "no known edge" if c.edge is None else f"{c.eigenvalue / c.edge:.3g} of the edge {c.edge:.3g}"
        click.echo(
            f"  {c.iteration:>7}  {c.layer:<14} {c.eigenvalue:9.3g} +- {c.error:.1g}  {edge}: {c.verdict};  "
            f"along the gradient {c.directional:.3g}, 2 / lr {c.gradient_edge:.3g}"
        )
    _show(save_sharpness(replay.run_dir, result, {"at": at, "steps": steps, "whole": whole}), cost)


@command.command()
@click.argument("file", metavar="FILE.toml")
@click.option("--collect", is_flag=True, help="Run nothing: summarise what is finished.")
@click.option("-o", "--output", metavar="DIR", help="Where the summary goes. Default: reports/<study>.")
@runs_dir
def study(file: str, collect: bool, output: str | None, runs_dir: str | None) -> None:
    """Impulses over a grid of runs, and claims about them.

    \b
    stablab cause study experiments/cause/impulse_small.toml
    """
    from stabilitylab.cause.study import judge, load_impulse_study, run_impulse_study, write_impulse_study
    from stabilitylab.store.location import runs_root

    path = Path(file)
    planned = load_impulse_study(path)
    click.echo(f"{planned.title}: {len(planned.runs)} runs")
    say = lambda text: click.echo(text, err=True)  # noqa: E731
    found = run_impulse_study(planned, runs_root(runs_dir), say, collect=collect)
    if not found:
        raise ConfigError(f"no run of {file} is finished; give the command without --collect")
    verdicts = judge(planned, found)
    folder = Path(output) if output else Path("reports") / path.stem
    write_impulse_study(planned, found, folder, verdicts)
    for verdict in verdicts:
        click.echo(f"{verdict.verdict}: {verdict.text} ({verdict.reason})")
    click.echo(f"summary: {folder}, of {len(found)} of {len(planned.runs)} runs")


def _open(run: str, runs_dir: str | None) -> Replay:
    from stabilitylab.cause.replay import Replay
    from stabilitylab.store.location import find_run, runs_root

    return Replay(find_run(runs_root(runs_dir), run))


class Cost:
    """What an experiment will take, measured on a few of its own iterations, and what it took."""

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
    click.echo(f"took {cost.took}; kept in {experiment.path}")
    for text in experiment.next:
        click.echo(f"next: {text}")
