"""``stablab demo``: the whole chain on real digits."""

from __future__ import annotations

import time
from pathlib import Path

import click

from stabilitylab.cli.options import runs_dir

# A high learning rate at which training still works. Whether it is unstable depends on the seed and the processor; the
# report states what was observed, even if there was no instability.
DEMO_LR = 0.17
DEMO_ITERATIONS = 1200


@click.command()
@click.option(
    "--iterations",
    default=DEMO_ITERATIONS,
    show_default=True,
    type=click.IntRange(20),
    help="Length of each run.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of both runs.")
@click.option("-o", "--output", metavar="FILE", help="The report. Default: demo_report.html next to the runs.")
@runs_dir
def command(iterations: int, seed: int, output: str | None, runs_dir: str | None) -> None:
    """Train with a learned and with a frozen patch projection, side by side, and compare them in one report.

    The learning rate is high. Whether training becomes unstable depends on the seed and the processor; the first line
    of the report states what was observed. Takes a few minutes on two cores.
    """
    from stabilitylab.cli.progress import TrainingProgress
    from stabilitylab.cli.report import build_report
    from stabilitylab.config import resolve
    from stabilitylab.store.location import runs_root
    from stabilitylab.studies import train_side_by_side

    started = time.monotonic()
    root = runs_root(runs_dir)
    base = {
        "optim": {"base_lr": DEMO_LR},
        "train": {"iterations": iterations, "seed": seed},
        "record": {"log_grads": True},
        "eval": {"knn_every": 5},
    }
    learned, frozen = _free_names(root)
    report = Path(output) if output else root / f"{learned.replace('learned', 'report')}.html"
    if output and not report.parent.is_dir():
        raise click.ClickException(f"{report.parent} is not a folder; create it, or choose another location with -o")
    jobs = [(learned, resolve(base)), (frozen, resolve(base, {"mitigation": ["frozen-patch"]}))]
    click.echo(
        f"MoCo v3 on scikit-learn's digits, base lr {DEMO_LR:g}, seed {seed}, {iterations} iterations, two runs:"
    )
    click.echo(f"  {learned}: learned patch projection\n  {frozen}: frozen patch projection")
    with TrainingProgress() as progress:
        try:
            paths = train_side_by_side(jobs, root, lambda run, state: progress.update(state, run))
        except RuntimeError as error:
            raise click.ClickException(str(error)) from None
    build_report(paths, report)
    where = f" --runs-dir {runs_dir}" if runs_dir else ""
    click.echo(f"done in {time.monotonic() - started:.0f} s")
    click.echo(f"report: {report}")
    click.echo(f"next: stablab analyze {learned}{where}")


def _free_names(root: Path) -> tuple[str, str]:
    """A pair of unused run names, so that a second demo overwrites nothing."""
    number = 1
    while True:
        ending = "" if number == 1 else f"_{number}"
        pair = (f"demo_learned{ending}", f"demo_frozen{ending}")
        if not any((root / name).exists() for name in pair):
            return pair
        number += 1
