"""``stablab study``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stabilitylab.cli.options import runs_dir
from stabilitylab.config import parse_override
from stabilitylab.errors import ConfigError

if TYPE_CHECKING:
    from stabilitylab.comparison.claims import Verdict
    from stabilitylab.studies.study import PlannedRun, Study
    from stabilitylab.train.trainer import Progress

_SAY_EVERY = 30.0  # seconds between plain lines of progress


@click.command(short_help="Train a grid of runs and test its claims.")
@click.argument("file", metavar="FILE.toml")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Runs to train in parallel.")
@click.option(
    "--dry-run", is_flag=True, help="Print the plan and its cost, estimated by timing a few iterations, and exit."
)
@click.option("--collect", is_flag=True, help="Train nothing; only summarise finished runs.")
@click.option("--yes", is_flag=True, help="Confirm a grid of more than 200 runs.")
@click.option("--slurm", metavar="PARTITION", help="Submit each run to Slurm with submitit, and wait for all of them.")
@click.option(
    "--slurm-set", metavar="KEY=VALUE", multiple=True, help="A parameter of submitit, e.g. gpus_per_node=1. Repeatable."
)
@click.option("-o", "--output", metavar="DIR", help="Folder of the summary. Default: reports/<study>.")
@click.option("--report", is_flag=True, help="Also write an HTML report of all runs.")
@click.option("--search", is_flag=True, help="FILE.toml is a search: a space from which settings are drawn at random.")
@click.option(
    "--hours", type=click.FloatRange(0, min_open=True), help="With --search: start no further setting after this time."
)
@runs_dir
def command(
    file: str,
    jobs: int,
    dry_run: bool,
    collect: bool,
    yes: bool,
    slurm: str | None,
    slurm_set: tuple[str, ...],
    output: str | None,
    report: bool,
    search: bool,
    hours: float | None,
    runs_dir: str | None,
) -> None:
    """Train a grid of runs, compare them, and test the claims of the study.

    Finished runs are kept and interrupted runs continue: after a crash, rerun the same command.

    \b
    stablab study experiments/small/first_layer_spikes.toml --dry-run
    stablab study experiments/small/first_layer_spikes.toml --jobs 2
    stablab study --search experiments/search/first_layer_spikes.toml --hours 2
    """
    if search:
        if slurm or slurm_set or report or yes:
            raise ConfigError("--search allows only --jobs, --hours, --dry-run, --collect, -o and --runs-dir")
        from stabilitylab.cli.search import run_search

        run_search(file, runs_dir, output, jobs=jobs, hours=hours, dry_run=dry_run, collect=collect)
        return
    if hours is not None:
        raise ConfigError("--hours requires --search; the length of a study is given by its grid")
    from stabilitylab.store.location import runs_root
    from stabilitylab.studies.collect import finished_runs, read_summary, verdicts, write_summary
    from stabilitylab.studies.lag_figure import draw_lags
    from stabilitylab.studies.overview import draw_overview
    from stabilitylab.studies.page import write_page
    from stabilitylab.studies.study import load_study

    study, root = load_study(file, yes=yes), runs_root(runs_dir)
    done = {run.name for run in finished_runs(study, root)}
    todo = [run for run in study.runs if run.name not in done]
    most = "at most " if study.looks else ""
    click.echo(f"{study.title}: {most}{len(study.runs)} runs, {len(done)} finished, {most}{len(todo)} to train")
    if dry_run:
        _plan(study, todo, jobs)
        return
    cluster = None
    if slurm is not None:
        cluster = {"slurm_partition": slurm} | {".".join(key): value for key, value in map(parse_override, slurm_set)}
    folder = Path(output) if output else Path("reports") / study.name
    failures = {} if collect else _train_in_turn(study, root, jobs, cluster, folder)
    if failures and not finished_runs(study, root):
        raise ConfigError(_failed(failures))
    write_summary(study, root, folder)
    rows = read_summary(folder)
    draw_overview(rows, study.title, folder / "overview.png")
    draw_lags(folder, study.title)
    write_page(study, rows, folder)
    if report:
        from stabilitylab.cli.report import build_report

        build_report([root / run.name for run in finished_runs(study, root)], folder / "report.html")
    for verdict in verdicts(study, rows):
        click.echo(describe(verdict))
    click.echo(f"summary: {folder}, {len(rows)} of {most}{len(study.runs)} runs")
    if failures:
        raise ConfigError(_failed(failures))


def _train_in_turn(study: Study, root: Path, jobs: int, cluster: dict[str, Any] | None, folder: Path) -> dict[str, str]:
    """Train all runs. In a sequential study, train seed after seed until all claims are decided. Returns failures."""
    from stabilitylab.studies.collect import read_summary, verdicts, write_summary
    from stabilitylab.studies.restarting import is_complete

    wanted, claims = list(study.runs), study.claims
    for look in study.looks or (0,):
        if look:
            first = look == study.looks[0]
            wanted = (
                [r for r in study.runs if r.config.train.seed < study.first_seed + look]
                if first
                else study.runs_of(claims, look)
            )
        todo = [run for run in wanted if not is_complete(root / run.name)]
        todo.sort(key=lambda run: run.config.train.seed)  # whole seeds first: a study that is stopped can be judged
        failures = _train(todo, root, jobs, cluster)
        if failures or not look:
            return failures
        write_summary(study, root, folder)
        claims = tuple(v.claim for v in verdicts(study, read_summary(folder)) if v.verdict == "inconclusive")
        click.echo(f"{look} seeds: {len(study.claims) - len(claims)} of {len(study.claims)} claims are decided")
        if not claims:
            break
    return {}


def _failed(failures: dict[str, str]) -> str:
    name, why = next(iter(failures.items()))
    return f"{len(failures)} runs failed, the first {name}: {why}; rerun the same command to continue"


def describe(verdict: Verdict) -> str:
    """``reproduced: TEXT (final_knn +0.012, 95% [0.004, 0.02], 5 seeds: REASON)``."""
    size = "no value" if verdict.difference is None else f"{verdict.difference:+.3g}"
    at = verdict.interval
    interval = f", {100 * verdict.level:.4g}% [{at[0]:.3g}, {at[1]:.3g}]" if at else ""
    return (
        f"{verdict.verdict}: {verdict.claim.text} "
        f"({verdict.claim.metric} {size}{interval}, {verdict.num_seeds} seeds: {verdict.reason})"
    )


def _plan(study: Study, todo: list[PlannedRun], jobs: int) -> None:
    from stabilitylab.studies.cost import estimate_seconds
    from stabilitylab.studies.plan import duration

    for run in study.runs:
        click.echo(f"  {'train' if run in todo else 'keep '} {run.name}")
    for claim in study.claims:
        click.echo(f"  claim: {claim.text} ({claim.metric}, {claim.direction}, at least {claim.smallest:g})")
    seconds = estimate_seconds([run.config for run in todo])
    parallel = f", {duration(seconds / jobs)} with --jobs {jobs}" if jobs > 1 else ""
    click.echo(f"cost: {duration(seconds)} of one process{parallel}")


def _train(todo: list[PlannedRun], root: Path, jobs: int, cluster: dict[str, Any] | None) -> dict[str, str]:
    if not todo:
        return {}
    work = [(run.name, run.config) for run in todo]
    progress = _Whole(len(work))
    if cluster is not None:
        from stabilitylab.studies.slurm import run_on_cluster

        return run_on_cluster(work, root, cluster, progress.ended)
    from stabilitylab.studies.local import run_jobs

    return run_jobs(work, root, jobs, progress.update, progress.ended)


class _Whole:
    """Progress of all runs together, as a plain line every 30 seconds and at the end of each run."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._shares: dict[str, float] = {}
        self._start = self._said = time.monotonic()

    def update(self, name: str, state: Progress) -> None:
        self._shares[name] = state.iteration / state.total
        if time.monotonic() - self._said >= _SAY_EVERY:
            self._say(", ".join(f"{name} {share:.0%}" for name, share in self._shares.items()))

    def ended(self, name: str, why: str) -> None:
        self.done += 1
        self._shares.pop(name, None)
        self._say(f"{name} {'failed: ' + why if why else 'finished'}")

    def _say(self, what: str) -> None:
        now = self._said = time.monotonic()
        share = (self.done + sum(self._shares.values())) / self.total
        left = (now - self._start) * (1 - share) / share if share else 0.0
        click.echo(f"{self.done}/{self.total} runs, {left / 60:.0f} min left: {what}", err=True)
