"""Options that several commands share."""

from __future__ import annotations

import click

runs_dir = click.option(
    "--runs-dir",
    metavar="DIR",
    help="Where runs live. Default: $STABLAB_RUNS, else ./runs.",
)
