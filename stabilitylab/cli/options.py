"""Options that several commands share."""

from __future__ import annotations

import click

runs_dir = click.option(
    "--runs-dir",
    metavar="DIR",
    help="The folder of the runs. Default: $STABLAB_RUNS, else ./runs.",
)

metric = click.option(
    "--metric",
    metavar="NAME",
    help="The evaluation metric to judge. Default: kNN accuracy, else a held-out accuracy, else a held-out loss, else "
    "the training loss.",
)
goal = click.option(
    "--goal",
    type=click.Choice(["max", "min"]),
    help="Whether higher or lower is better. Default: as declared in the run, else inferred from the metric's name.",
)
