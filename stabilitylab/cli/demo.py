"""``stablab demo``: the whole chain on real digits."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import click

from stabilitylab.cli.options import runs_dir

# The narrow regime that the search found (reports/README.md), not compiled: the gradient of the first layer spikes far
# more often than expected by chance while training works. reports/demo/ has ten seeds and three CPU capabilities.
DEMO: dict[str, Any] = {
    "data": {"name": "digits", "crop_min": 0.6},
    "model": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2},
    "method": {"name": "simclr", "temperature": 0.1, "head_bn": True},
    "optim": {
        "base_lr": 0.1048,
        "weight_decay": 0.00628,
        "warmup_iterations": 200,
        "beta1": 0.9,
        "beta2": 0.95,
        "schedule": "constant",
    },
    "train": {"batch_size": 32, "device": "cpu", "checkpoint_every": 0},
    "record": {"log_grads": True},
    "eval": {"knn_every": 20},
}
DEMO_ITERATIONS = 3000
DEMO_SEEDS = 3


@click.command(short_help="Train, analyse and compare runs on digits.")
@click.option(
    "--iterations",
    default=DEMO_ITERATIONS,
    show_default=True,
    type=click.IntRange(20),
    help="Length of each run.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="The first seed.")
@click.option(
    "--seeds", default=DEMO_SEEDS, show_default=True, type=click.IntRange(1), help="Number of seeds per side."
)
@click.option("-o", "--output", metavar="FILE", help="The report. Default: demo_report.html next to the runs.")
@runs_dir
def command(iterations: int, seed: int, seeds: int, output: str | None, runs_dir: str | None) -> None:
    """Train with a learned and with a frozen patch projection, several seeds each, and compare them in one report.

    Trains SimCLR on digits, at a learning rate at which training works and the gradient of the first layer spikes. The
    first line of the report states what was observed. Takes a few minutes on two cores.
    """
    from stabilitylab.cli.progress import TrainingProgress
    from stabilitylab.cli.report import build_report
    from stabilitylab.config import resolve
    from stabilitylab.report.writing import check_output
    from stabilitylab.store.location import runs_root
    from stabilitylab.studies import train_side_by_side

    started = time.monotonic()
    root = runs_root(runs_dir)
    all_seeds = range(seed, seed + seeds)
    names = _free_names(root, all_seeds)
    learned, report = names[0], Path(output) if output else root / f"{names[0].replace('learned', 'report')}.html"
    if output:
        check_output(report, "html")
    jobs = []
    for number, name in enumerate(names):
        own = {"train": {"iterations": iterations, "seed": all_seeds[number // 2]}}
        jobs.append((name, resolve(DEMO, own, {"mitigation": ["frozen-patch"]} if "frozen" in name else {})))
    many = f"seeds {seed} to {seed + seeds - 1}" if seeds > 1 else f"seed {seed}"
    click.echo(
        f"SimCLR on scikit-learn's digits, base lr {DEMO['optim']['base_lr']:g}, {many}, {iterations} iterations, "
        f"{len(jobs)} runs:"
    )
    click.echo(f"  {', '.join(names[::2])}: learned patch projection\n  {', '.join(names[1::2])}: frozen")
    with TrainingProgress() as progress:
        try:
            workers = min(len(jobs), os.cpu_count() or 1)
            paths = train_side_by_side(jobs, root, lambda run, state: progress.update(state, run), workers=workers)
        except RuntimeError as error:
            raise click.ClickException(str(error)) from None
    build_report(paths, report)
    where = f" --runs-dir {runs_dir}" if runs_dir else ""
    click.echo(f"done in {time.monotonic() - started:.0f} s")
    click.echo(f"report: {report}")
    click.echo(f"next: stablab analyze {learned}{where}")


def _free_names(root: Path, seeds: range) -> list[str]:
    """Unused run names, so that a second demo overwrites nothing: learned and frozen for each seed in turn."""
    number = 1
    while True:
        ending = "" if number == 1 else f"_{number}"
        names = []
        for seed in seeds:
            which = "" if seed == seeds[0] else f"_seed{seed}"
            names += [f"demo_learned{which}{ending}", f"demo_frozen{which}{ending}"]
        if not any((root / name).exists() for name in names):
            return names
        number += 1
