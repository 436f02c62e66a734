"""``stablab study --search``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from stabilitylab.errors import ConfigError
from stabilitylab.studies.search_table import Row

FOLDER = Path("reports") / "search"


def run_search(
    file: str, runs_dir: str | None, output: str | None, *, jobs: int, hours: float | None, dry_run: bool, collect: bool
) -> None:
    """Train the settings of a search that are not in its table yet. The table is written after each setting."""
    from stabilitylab.store.location import runs_root
    from stabilitylab.studies.local import run_jobs
    from stabilitylab.studies.restarting import is_complete
    from stabilitylab.studies.search import load_search
    from stabilitylab.studies.search_table import met, read_table, search_row, write_table
    from stabilitylab.studies.series import write_series

    search, root = load_search(file), runs_root(runs_dir)
    folder = Path(output) if output else FOLDER / search.name
    rows: dict[str, Row] = {row["run"]: row for row in read_table(folder)}
    tried = sum(setting.name in rows for setting in search.settings)
    click.echo(f"{search.title}: {len(search.settings)} settings, {tried} in {folder}")
    if dry_run:
        for setting in search.settings:
            what = ", ".join(f"{key} {value}" for key, value in setting.values.items())
            click.echo(f"  {'keep' if setting.name in rows else 'try '} {setting.source} {setting.index}: {what}")
        return
    waiting = {setting.name: setting for setting in search.settings if setting.name not in rows}

    def keep(name: str, why: str) -> None:
        if why:
            click.echo(f"{name} failed: {why}", err=True)
            return
        row = rows[name] = search_row(waiting[name], root / name, search.objective)
        if row["source"] == "lead":  # keep these runs, so that later code can analyse them again without training
            write_series(root / name, folder / "series" / f"{name}.parquet")
        write_table(search, list(rows.values()), folder)
        shown = ", ".join(part for part, yes in met(row, search.objective).items() if yes) or "nothing"
        click.echo(
            f"{row['source']} {row['index']}: kNN {row['knn_untrained']} to {row['knn_end']}, "
            f"{row['first_layer_spikes']} spikes of {row['first_layer']}, {row['spikes']} in all, "
            f"{row['recovered']} dips that recover; met: {shown}"
        )

    for name in [name for name in waiting if is_complete(root / name)]:
        keep(name, "")
        waiting.pop(name)
    deadline = time.monotonic() + (hours * 3600 if hours else float("inf"))
    failures = {}
    if waiting and not collect:
        work = [(setting.name, setting.config) for setting in waiting.values()]
        failures = run_jobs(work, root, jobs, ended=keep, time_is_up=lambda: time.monotonic() > deadline)
    write_table(search, list(rows.values()), folder)
    click.echo(f"table: {folder}, {len(rows)} settings; rerun the same command to continue")
    if failures:
        name, why = next(iter(failures.items()))
        raise ConfigError(f"{len(failures)} settings failed, the first {name}: {why}")
