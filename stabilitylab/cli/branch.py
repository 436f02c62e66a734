"""``stablab branch``."""

from __future__ import annotations

from pathlib import Path

import click

from stabilitylab.cli.options import runs_dir
from stabilitylab.errors import ConfigError


@click.command(short_help="Continue a run with and without a mitigation.")
@click.argument("run")
@click.option(
    "--at",
    required=True,
    type=click.IntRange(0),
    metavar="ITER",
    help="Branch at the last checkpoint at or before ITER.",
)
@click.option(
    "--mitigation", required=True, multiple=True, metavar="NAME[:VALUE]", help="The mitigation to add. Repeatable."
)
@click.option(
    "--seeds",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Number of pairs, each with its own data order.",
)
@click.option("--until", type=click.IntRange(1), metavar="ITER", help="End the branches here. Default: where RUN ends.")
@click.option("-o", "--output", metavar="FILE", help="A figure of the branches, .png or .svg.")
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
    """Counterfactual: continue from a checkpoint at or before ITER with and without a mitigation.

    Both branches start from the same state and see the same batches. `stablab train --keep-before-spikes` keeps the
    checkpoints that precede spikes.

    \b
    stablab branch run_001 --at 640 --mitigation frozen-patch --seeds 3 -o futures.png
    """
    from stabilitylab.cause.branch import branch_run
    from stabilitylab.cli.progress import TrainingProgress
    from stabilitylab.report.writing import check_output
    from stabilitylab.store.location import find_run, runs_root
    from stabilitylab.train.mitigations import parse_mitigations

    if not parse_mitigations(mitigation):
        raise ConfigError("--mitigation none: a branch without a mitigation is always trained; choose another")
    if output is not None and not output.endswith((".png", ".svg")):
        raise ConfigError(f"cannot draw {output}: the file name must end in .png or .svg")
    if output is not None:
        check_output(Path(output), Path(output).suffix[1:])
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
