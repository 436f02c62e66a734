"""``stablab branch``."""

from __future__ import annotations

import click

from stabilitylab.cli.options import runs_dir
from stabilitylab.errors import ConfigError


@click.command()
@click.argument("run")
@click.option("--at", required=True, type=click.IntRange(0), metavar="ITER", help="Leave the run here, or just before.")
@click.option("--mitigation", required=True, multiple=True, metavar="NAME[:VALUE]", help="What is added. Repeatable.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Pairs of futures; each its data.")
@click.option("--until", type=click.IntRange(1), metavar="ITER", help="End the futures here. Default: where RUN ends.")
@click.option("-o", "--output", metavar="FILE", help="A figure of the futures, .png or .svg.")
@runs_dir
def command(
    run: str,
    at: int,
    mitigation: tuple[str, ...],
    seeds: int,
    until: int | None,
    output: str | None,
    runs_dir: str | None,
) -> None:
    """The counterfactual: go on from a checkpoint before ITER with and without a mitigation.

    Both futures start from the same state and see the same batches. `stablab train --keep-before-spikes` keeps the
    checkpoints that precede spikes.

    \b
    stablab branch run_001 --at 640 --mitigation frozen-patch --seeds 3 -o futures.png
    """
    from stabilitylab.cause.branch import branch_run
    from stabilitylab.cli.progress import TrainingProgress
    from stabilitylab.store.location import find_run, runs_root
    from stabilitylab.train.mitigations import parse_mitigations

    if not parse_mitigations(mitigation):
        raise ConfigError("--mitigation none: the branch without a mitigation is trained anyway; name another")
    if output is not None and not output.endswith((".png", ".svg")):
        raise ConfigError(f"cannot draw {output}: give a file that ends in .png or .svg")
    root = runs_root(runs_dir)
    with TrainingProgress() as progress:
        paths = branch_run(
            find_run(root, run),
            at,
            mitigation,
            root,
            num_seeds=seeds,
            until=until,
            progress=lambda name, state: progress.update(state, name),
        )
    if output is not None:
        from stabilitylab.studies.futures import draw_futures

        draw_futures(paths, output)
        click.echo(f"figure: {output}")
    where = f" --runs-dir {runs_dir}" if runs_dir else ""
    click.echo(f"next: stablab compare {' '.join(path.name for path in paths)}{where}")
