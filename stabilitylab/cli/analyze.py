"""``stablab analyze``."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from stabilitylab.cli.options import runs_dir
from stabilitylab.config import ConfigError

if TYPE_CHECKING:
    from stabilitylab.analysis.results import RunAnalysis, RunSeries


@click.command()
@click.argument("run")
@click.option("--spikes", is_flag=True, help="Gradient spikes of every layer, and what chance alone would flag.")
@click.option("--lag", is_flag=True, help="Lag from the first to the last layer, and to every layer.")
@click.option("--dips", is_flag=True, help="Dips of the kNN curve and the spikes before them.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "csv"]), default="text", show_default=True,
    help="csv prints one row an event.",
)  # fmt: skip
@runs_dir
def command(run: str, spikes: bool, lag: bool, dips: bool, form: str, runs_dir: str | None) -> None:
    """Find spikes, their lag and accuracy dips in RUN. With none of the three named: all.

    Works on a run that is still being written.
    """
    from stabilitylab.analysis.run import analyze_run

    series, status = load_run(run, runs_dir)
    need_gradients(series, status)
    everything = not (spikes or lag or dips)
    found = analyze_run(series, spikes=spikes or everything, lag=lag or everything, dips=dips or everything)
    if form == "json":
        click.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    elif form == "csv":
        _print_csv(found)
    else:
        _print_text(found, status)


def load_run(run: str, runs_dir: str | None) -> tuple[RunSeries, str]:
    """The series of a run and its status. Segments that had to be left out are named on standard error."""
    from stabilitylab.experiments import load_series
    from stabilitylab.store.location import find_run, runs_root
    from stabilitylab.store.reader import open_run

    with open_run(find_run(runs_root(runs_dir), run)) as reader:
        for problem in reader.problems:
            click.echo(f"stablab: warning: {problem}", err=True)
        return load_series(reader), reader.status


def need_gradients(series: RunSeries, status: str) -> None:
    if not any(len(layer.iteration) for layer in series.layers):
        if status == "running":
            raise ConfigError(
                f"run {series.run} is still running and has no gradients recorded yet; "
                "try again in some seconds (or it was started without --log-grads)"
            )
        raise ConfigError(f"run {series.run} has no gradients recorded; train with --log-grads")


def _print_csv(found: RunAnalysis) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["event", "layer", "start", "peak", "end", "size", "z"])
    for spike in found.spikes or ():
        writer.writerow([spike.kind, spike.layer, spike.onset, spike.peak, spike.end, spike.ratio, spike.z])
    for dip in found.dips or ():
        end = "" if dip.recovered is None else dip.recovered
        writer.writerow(["dip", "", dip.start, dip.trough, end, dip.depth, dip.z])


_SHOWN = 12


def _print_text(found: RunAnalysis, status: str) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    say = console.print
    running = " so far, still running" if status == "running" else ""
    say(f"{found.run}: {found.iterations} iterations{running}, {len(found.layers)} layers")
    if found.spikes is not None:
        _print_spikes(found, say)
    if found.episodes:
        _print_episodes(found, say)
    if found.lag is not None:
        _print_lag(found, say)
    if found.dips is not None:
        _print_dips(found, say)
    for note in found.notes:
        say(f"note: {note}")


def _print_spikes(found: RunAnalysis, say: Callable[[str], None]) -> None:
    spikes = found.spikes or ()
    say(f"\nspikes: {len(spikes)}")
    if found.false_alarms is not None:
        alarms = found.false_alarms
        say(
            f"  chance alone (mirrored series): {alarms.mirrored_events} events, "
            f"{alarms.per_10k_iterations:.2f} per 10,000 iterations and layer"
        )
    if spikes:
        say(f"  {'layer':<14}{'onset':>8}{'peak':>8}{'end':>8}{'ratio':>9}{'z':>8}  kind")
    shown = sorted(spikes, key=lambda s: (-s.z, s.onset))[:_SHOWN]
    for s in sorted(shown, key=lambda s: s.onset):
        say(f"  {s.layer:<14}{s.onset:>8}{s.peak:>8}{s.end:>8}{s.ratio:>8.1f}x{s.z:>8.1f}  {s.kind}")
    if len(spikes) > _SHOWN:
        say(f"  the {_SHOWN} largest; all {len(spikes)}: --format csv")


def _print_episodes(found: RunAnalysis, say: Callable[[str], None]) -> None:
    episodes = found.episodes or ()
    say(f"\nepisodes (spikes of several layers that belong together): {len(episodes)}")
    say(f"  {'start':>8}{'end':>8}  {'leader':<14}{'layers':>7}{'reach':>7}{'largest':>10}  then")
    largest = sorted(episodes, key=lambda e: (-len(e.order), -e.z, e.start))[:_SHOWN]
    for e in sorted(largest, key=lambda e: e.start):
        followers = ", ".join(f"{layer} +{onset - e.start}" for layer, onset in e.order[1:4])
        more = f", {len(e.order) - 4} more" if len(e.order) > 4 else ""
        size = f"{e.ratio:.1f}x"
        say(f"  {e.start:>8}{e.end:>8}  {e.leader:<14}{len(e.order):>7}{e.reach:>7.0%}{size:>10}  {followers}{more}")
    if len(episodes) > _SHOWN:
        say(f"  the {_SHOWN} that reach farthest; all {len(episodes)}: --format json")


def _print_lag(found: RunAnalysis, say: Callable[[str], None]) -> None:
    lag = found.lag
    assert lag is not None
    say(f"\nlag from {lag.source} to {lag.target}: {lag.verdict}")
    if lag.median_iterations is not None:
        interval = "" if lag.ci95 is None else f", 95% interval {lag.ci95[0]:g} to {lag.ci95[1]:g}"
        chance = "" if lag.p_value is None else f", p = {lag.p_value:.3g}"
        say(f"  median {lag.median_iterations:g} iterations{interval}{chance}")
    say(f"  {lag.num_matched} of {lag.num_from} spikes matched" + (f": {lag.reason}" if lag.reason else ""))
    if lag.cross is not None:
        cross = lag.cross
        judged = {True: ": agrees", False: ": disagrees", None: ""}[lag.agree]
        say(
            f"  cross-correlation: {cross.lag:g} iterations, 95% interval {cross.ci95[0]:g} to {cross.ci95[1]:g}, "
            f"r = {cross.correlation:.2f}, p = {cross.p_value:.3g}{judged}"
        )
    measured = [row for row in found.propagation or () if row.median_lag is not None]
    if measured:
        say(f"  {'layer':<14}{'depth':>6}{'median lag':>12}{'matched':>9}")
        for row in measured:
            say(f"  {row.layer:<14}{row.depth:>6}{row.median_lag:>12g}{row.num_matched:>9}")


def _print_dips(found: RunAnalysis, say: Callable[[str], None]) -> None:
    dips = found.dips or ()
    say(f"\ndips of kNN accuracy: {len(dips)}")
    if dips:
        say(f"  {'start':>8}{'trough':>8}{'recovered':>11}{'depth':>8}{'z':>7}  after spike")
    for dip in dips:
        recovered = "not yet" if dip.recovered is None else str(dip.recovered)
        after = "" if dip.after_spike is None else f"{dip.after_spike.layer} at {dip.after_spike.onset}"
        say(f"  {dip.start:>8}{dip.trough:>8}{recovered:>11}{dip.depth:>8.3f}{dip.z:>7.1f}  {after}")
    link = found.dip_link
    if link is not None and link.num_dips and link.expected_by_chance is not None:
        chance = "" if link.p_value is None else f", p = {link.p_value:.3g}"
        say(
            f"  {link.num_linked} of {link.num_dips} follow a spike; chance gives {link.expected_by_chance:.1f}{chance}"
        )
