"""``stablab sql``."""

from __future__ import annotations

import csv
import json
import math
import sys
from typing import Any

import click

from stabilitylab.cli.options import runs_dir


@click.command(short_help="Query RUN's tables (read-only).")
@click.argument("run")
@click.argument("query")
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@runs_dir
def command(run: str, query: str, form: str, runs_dir: str | None) -> None:
    """Query RUN's tables (read-only): meta, layers, layer_stats, iterations, evals, scalars, events.

    \b
    stablab sql run_001 "select name, max(grad_norm) from layer_stats join layers using (layer_id) group by 1"
    """
    from stabilitylab.store.location import find_run, runs_root
    from stabilitylab.store.reader import open_run

    with open_run(find_run(runs_root(runs_dir), run)) as reader:
        result = reader.query(query)
        names, rows = result.columns, result.fetchall()
    if form == "json":
        click.echo(json.dumps([dict(zip(names, map(_plain, row), strict=True)) for row in rows], indent=2))
    elif form == "csv":
        from stabilitylab.store.spreadsheet import cell

        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(map(cell, names))
        writer.writerows([[cell(value) for value in row] for row in rows])
    else:
        _print_table(names, rows)


def _plain(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, with None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def _print_table(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from stabilitylab.cli.terminal import console

    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(names):
        numeric = all(isinstance(row[index], (int, float, type(None))) for row in rows)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
