"""``stablab claims``."""

from __future__ import annotations

from pathlib import Path

import click

from stabilitylab.errors import ConfigError


@click.command(short_help="Rebuild the table of all claims and verdicts.")
@click.argument("studies", default="experiments/small", metavar="[DIR]")
@click.option("--reports", default="reports", show_default=True, metavar="DIR", help="Folder of the study summaries.")
@click.option("--check", is_flag=True, help="Write nothing; exit with code 1 if the table is out of date.")
def command(studies: str, reports: str, check: bool) -> None:
    """Rebuild the table of all claims and their verdicts, REPORTS/README.md, from the summaries of the studies.

    DIR contains the study files. Default: experiments/small.
    """
    from stabilitylab.report.writing import write_atomically
    from stabilitylab.studies.verdicts import claims_table, find_studies

    folder = Path(reports)
    table = claims_table(find_studies(studies), folder)
    target = folder / "README.md"
    if check:
        same = target.is_file() and target.read_text(encoding="utf-8") == table
        click.echo(f"{target} is {'up to date' if same else 'out of date; run stablab claims'}")
        raise SystemExit(0 if same else 1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(target, table.encode())
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from None
    click.echo(f"table: {target}")
