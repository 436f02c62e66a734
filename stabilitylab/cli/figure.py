"""``stablab figure``."""

from __future__ import annotations

from pathlib import Path

import click

from stabilitylab.cli.options import runs_dir
from stabilitylab.errors import ConfigError
from stabilitylab.report.paper import FIGURES, FORMATS, WIDTHS


@click.command(short_help="Draw a figure of runs for a paper.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--kind", type=click.Choice(list(FIGURES)), required=True,
    help="; ".join(f"{kind}: {shows}" for kind, shows in FIGURES.items()) + ".",
)  # fmt: skip
@click.option("--format", "form", type=click.Choice(FORMATS), help="Default: the extension of FILE.")
@click.option(
    "--width", type=click.Choice(list(WIDTHS)), default="single", show_default=True,
    help="Width in columns of a paper: 3.25 or 6.75 inches.",
)  # fmt: skip
@click.option("--latex", is_flag=True, help="Write the numbers as a LaTeX table with intervals instead of a figure.")
@click.option("-o", "--output", metavar="FILE", help="The output file. Default for tables: standard output.")
@runs_dir
def command(
    runs: tuple[str, ...],
    kind: str,
    form: str | None,
    width: str,
    latex: bool,
    output: str | None,
    runs_dir: str | None,
) -> None:
    """Draw a figure of runs for a paper: column width, fonts embedded, readable without colour."""
    from stabilitylab.cli.report import compare, load_runs
    from stabilitylab.report.paper.figures import render
    from stabilitylab.report.paper.numbers import numbers_latex
    from stabilitylab.report.writing import check_output, write_file
    from stabilitylab.store.location import find_run, runs_root

    if latex and form:
        raise ConfigError("--latex writes a table; remove --format")
    if output is None and not latex:
        raise ConfigError("a figure needs an output file; use -o FILE")
    ending = Path(output or "").suffix.lstrip(".").lower()
    if not latex and form is None and ending not in FORMATS:
        raise ConfigError(f"unknown format of {output}; use the extension .pdf, .svg or .png, or set --format")
    if output is not None:
        check_output(Path(output), "tex" if latex else form or ending)
    root = runs_root(runs_dir)
    shown = load_runs([find_run(root, run) for run in dict.fromkeys(runs)])
    comparison = compare(shown) if len(shown) > 1 else None
    data = (
        numbers_latex(kind, shown, comparison).encode()
        if latex
        else render(kind, shown, comparison, width=width, form=form or ending)
    )
    if output is None:
        click.echo(data.decode(), nl=False)
        return
    write_file(Path(output), data)
    click.echo(f"figure: {output}" if not latex else f"table: {output}")
