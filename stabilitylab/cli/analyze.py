"""``stablab analyze``."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from stabilitylab.analysis.detection.settings import RULES, describe_rules
from stabilitylab.cli.options import goal, metric, runs_dir
from stabilitylab.errors import ConfigError

if TYPE_CHECKING:
    from stabilitylab.analysis.detection.settings import SpikeSettings
    from stabilitylab.analysis.results import RunAnalysis


@click.command()
@click.argument("run")
@click.option("--spikes", is_flag=True, help="Gradient spikes of every layer and the episodes they form.")
@click.option("--lag", is_flag=True, help="Lag from the first to the last layer, and to every layer.")
@click.option("--dips", is_flag=True, help="Dips of the judged metric and the spikes before them.")
@click.option("--explain", is_flag=True, help="Explain every episode in plain words, and what to try next.")
@click.option(
    "--rule", type=click.Choice(["stablab", *RULES]), default="stablab", show_default=True,
    help="Detection rule. " + describe_rules() + ". These are for comparison: they guarantee no false-alarm rate.",
)  # fmt: skip
@click.option(
    "--false-alarms", type=float, metavar="RATE",
    help="Target rate of false alarms per 10,000 iterations and layer. [default: 1]",
)  # fmt: skip
@click.option(
    "--min-ratio", type=float, metavar="X", help="A spike must reach at least X times the usual norm. [default: 2]"
)
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "csv"]), default="text", show_default=True,
    help="csv prints one row per event.",
)  # fmt: skip
@metric
@goal
@click.option(
    "--first", metavar="LAYER",
    help="Measure the lag from this layer. Default: the first with a gradient on the path of the main loss.",
)  # fmt: skip
@click.option("--last", metavar="LAYER", help="Measure the lag to this layer. Default: the last on that path.")
@click.option(
    "--fail-on", multiple=True, type=click.Choice(["spikes", "collapse", "drift", "nonfinite"]),
    help="Exit with code 1 if the run has more spikes than expected by chance (p < 0.01), collapsed features, a "
    "drifting norm, or a non-finite gradient. Repeatable.",
)  # fmt: skip
@click.option("--no-cache", is_flag=True, help="Ignore the cached result and store nothing in the run's folder.")
@runs_dir
def command(
    run: str,
    spikes: bool,
    lag: bool,
    dips: bool,
    explain: bool,
    rule: str,
    false_alarms: float | None,
    min_ratio: float | None,
    form: str,
    metric: str | None,
    goal: str | None,
    first: str | None,
    last: str | None,
    fail_on: tuple[str, ...],
    no_cache: bool,
    runs_dir: str | None,
) -> None:
    """Detect spikes, their lag, and dips of the metric in RUN. Without --spikes, --lag or --dips: all three.

    Dips are detected in one metric: drops of an accuracy, rises of a loss or a perplexity.

    Works on a run that is still being written. The result is cached in the run's folder until the run has new rows.
    """
    from stabilitylab.analysis.explain import explain_episodes
    from stabilitylab.cli.analysis_text import print_text
    from stabilitylab.run.answers import answer_run
    from stabilitylab.store.location import find_run, runs_root

    settings = _settings(rule, false_alarms, min_ratio)
    run_dir = find_run(runs_root(runs_dir), run)
    answer = answer_run(run_dir, settings, metric=metric, goal=goal, first=first, last=last, keep=not no_cache)
    for problem in answer.problems:
        click.echo(f"stablab: warning: {problem}", err=True)
    has_checkpoints = any((run_dir / "checkpoints").glob("*"))
    ours = "optim" in answer.config
    explanations = (
        explain_episodes(answer.analysis, answer.config, ours=ours, checkpoints=has_checkpoints) if explain else None
    )
    analysis = answer.analysis
    if spikes or lag or dips:
        analysis = analysis.only(spikes=spikes, lag=lag, dips=dips)
    if form == "json":
        whole = analysis.to_dict() | ({"explain": [one.to_dict() for one in explanations or ()]} if explain else {})
        click.echo(json.dumps(whole, indent=2, allow_nan=False))
    elif form == "csv":
        _print_csv(analysis)
    else:
        print_text(analysis, answer.status, explanations)
    failures = _failures(answer.analysis, fail_on)
    for failure in failures:
        click.echo(f"stablab: failed: {failure}", err=True)
    if failures:
        raise click.exceptions.Exit(1)


def _failures(analysis: RunAnalysis, fail_on: tuple[str, ...]) -> list[str]:
    """Descriptions of the conditions in ``fail_on`` that the run meets."""
    alarms, collapse = analysis.false_alarms, analysis.collapse
    broken = sum(spike.kind == "nonfinite" for spike in analysis.spikes or ())
    spikes = sum(spike.kind == "spike" for spike in analysis.spikes or ())
    failures = []
    if "spikes" in fail_on and alarms is not None and spikes and alarms.p_value < 0.01:
        failures.append(
            f"{spikes} spikes, where {alarms.expected:.3g} are expected by chance (p = {alarms.p_value:.2g})"
        )
    if "nonfinite" in fail_on and broken:
        failures.append(f"{broken} periods of non-finite gradients")
    if "collapse" in fail_on and collapse is not None and collapse.verdict == "collapsed":
        failures.append(f"features collapsed at iteration {collapse.iteration}")
    if "drift" in fail_on and analysis.certain_drifts:
        drifting = sorted({drift.layer for drift in analysis.certain_drifts})
        failures.append(f"the gradient norm drifts in {', '.join(drifting)}")
    return failures


def _settings(rule: str, false_alarms: float | None, min_ratio: float | None) -> SpikeSettings:
    from stabilitylab.analysis.detection.settings import SpikeSettings

    given = {"--false-alarms": false_alarms, "--min-ratio": min_ratio}
    if rule != "stablab":
        for option, value in given.items():
            if value is not None:
                raise ConfigError(f"{option} cannot be combined with --rule {rule}, which has fixed parameters")
    try:
        settings = SpikeSettings(rule=rule)
        if false_alarms is not None:
            settings = replace(settings, false_alarms_per_10k=false_alarms)
        return settings if min_ratio is None else replace(settings, ratio_open=min_ratio)
    except ValueError as error:
        option = "--false-alarms" if "false_alarms" in str(error) else "--min-ratio"
        raise ConfigError(f"{option}: {str(error).split(' ', 1)[1]}") from None


def _print_csv(analysis: RunAnalysis) -> None:
    from stabilitylab.store.spreadsheet import cell

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["event", "layer", "start", "peak", "end", "size", "z"])
    for spike in analysis.spikes or ():
        writer.writerow([spike.kind, cell(spike.layer), spike.onset, spike.peak, spike.end, spike.ratio, spike.z])
    for dip in analysis.dips or ():
        end = "" if dip.recovered is None else dip.recovered
        writer.writerow(["dip", "", dip.start, dip.trough, end, dip.depth, dip.z])
