"""``stablab convert``."""

from __future__ import annotations

from pathlib import Path

import click

from stabilitylab.cli.options import runs_dir


@click.command()
@click.argument("source")
@click.option("-o", "--out", metavar="FILE", help="Write the backbone as a state dict under timm's names.")
@click.option("--momentum", is_flag=True, help="With -o: export the momentum encoder instead of the base encoder.")
@click.option("--data", metavar="NAME[:DIR]", help="Create a run from SOURCE with this data set, e.g. imagefolder:DIR.")
@click.option("--name", metavar="RUN", help="With --data: the run's name. Default: the next run_NNN.")
@runs_dir
def command(
    source: str, out: str | None, momentum: bool, data: str | None, name: str | None, runs_dir: str | None
) -> None:
    """Convert weights. SOURCE is a checkpoint of the official MoCo v3 release, or a run.

    \b
    stablab convert vit-s-300ep.pth.tar -o vit_small.pth                    for timm
    stablab convert vit-s-300ep.pth.tar --data imagefolder:DIR --name moco  then: stablab probe moco
    stablab convert run_001 -o encoder.pth
    """
    from stabilitylab.store.location import find_run, runs_root
    from stabilitylab.studies.converting import official_to_run, to_timm_file

    if (out is None) == (data is None):
        raise click.UsageError("use -o FILE for timm's format, or --data NAME:DIR to create a run")
    if data is None and name is not None:
        raise click.UsageError("--name requires --data")
    if out is None and momentum:
        raise click.UsageError("--momentum requires -o")
    root = runs_root(runs_dir)
    if data is not None:
        run = official_to_run(Path(source), root, data, name)
        where = f" --runs-dir {runs_dir}" if runs_dir else ""
        click.echo(f"{run.name}: {Path(source).name}")
        click.echo(f"next: stablab probe {run.name}{where}")
        return
    assert out is not None
    path = Path(source)
    place = path if path.is_file() else find_run(root, source)
    count = to_timm_file(place, Path(out), "momentum_encoder" if momentum else "base_encoder")
    click.echo(f"{out}: {count} tensors")
