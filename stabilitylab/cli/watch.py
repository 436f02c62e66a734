"""``stablab watch``."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

import click
import numpy as np

from stabilitylab.cli.options import runs_dir

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

    from stabilitylab.analysis.results import Spike
    from stabilitylab.cli.live import Snapshot

_BARS = "▁▂▃▄▅▆▇█"
_PLAIN_BARS = "_.-=+*%#"
_LAYERS = 8
_SPIKES = 6


@click.command(short_help="Watch RUN while it trains.")
@click.argument("run")
@click.option("--once", is_flag=True, help="Show the current state and exit.")
@click.option(
    "--every",
    metavar="SECONDS",
    type=click.FloatRange(0.2),
    default=2.0,
    show_default=True,
    help="Time between updates.",
)
@click.option(
    "--on-spike", metavar="COMMAND",
    help="Run a shell command after each new spike has ended, with STABLAB_RUN, STABLAB_LAYER, STABLAB_ONSET, "
    "STABLAB_PEAK, STABLAB_RATIO, STABLAB_Z and STABLAB_KIND in its environment.",
)  # fmt: skip
@runs_dir
def command(run: str, once: bool, every: float, on_spike: str | None, runs_dir: str | None) -> None:
    """Watch RUN while it trains: progress, loss, the judged metric, layers by their latest z, and spikes.

    Exits when the run ends. Prints plain lines if the output is not a terminal.
    """
    from rich.live import Live

    from stabilitylab.cli import terminal
    from stabilitylab.cli.live import Watcher
    from stabilitylab.store.location import find_run, runs_root
    from stabilitylab.store.reader import open_run

    console = terminal.console(highlight=False, markup=False)
    with open_run(find_run(runs_root(runs_dir), run), merge=False) as reader:
        watcher = Watcher(reader)
        now = watcher.snapshot()
        alert = Alert(on_spike)
        alert.note(now, run=once)  # do not report spikes from before watching began
        try:
            if once:
                console.print(view(now, console))
            elif not console.is_terminal:
                lines = PlainLines()
                lines.show(now)
                while now.status == "running":
                    time.sleep(every)
                    now = watcher.snapshot()
                    lines.show(now)
                    alert.note(now)
            else:
                with Live(view(now, console), console=console, auto_refresh=False) as live:
                    while now.status == "running":
                        time.sleep(every)
                        now = watcher.snapshot()
                        live.update(view(now, console), refresh=True)
                        alert.note(now)
        except KeyboardInterrupt:
            return  # the usual way to stop watching


class ReportedSpikes:
    """Remembers which spikes were reported. Later values may move an onset, so overlapping spikes are the same."""

    def __init__(self) -> None:
        self.spikes: dict[str, dict[int, int]] = {}  # layer -> onset -> end

    def new(self, spike: Spike) -> bool:
        """Whether the spike was not reported before. Marks it as reported."""
        told = self.spikes.setdefault(spike.layer, {})
        known = any(onset <= spike.end and spike.onset <= end for onset, end in told.items())
        told[spike.onset] = spike.end
        return not known

    def withdrawn(self, now: Snapshot) -> list[tuple[str, int]]:
        """Layer and onset of reported spikes that are no longer detected; each is returned once."""
        withdrawn_spikes = []
        for layer, told in self.spikes.items():
            there = [s for s in now.spikes if s.layer == layer]
            for onset, end in list(told.items()):
                if not any(s.onset <= end and onset <= s.end for s in there):
                    del told[onset]
                    withdrawn_spikes.append((layer, onset))
        return withdrawn_spikes


class Alert:
    """Runs a command after each new spike has ended. If the command fails, a warning is printed."""

    def __init__(self, command: str | None) -> None:
        self.command = command
        self._reported = ReportedSpikes()

    def note(self, now: Snapshot, *, run: bool = True) -> None:
        if self.command is None:
            return
        for spike in now.over():
            if self._reported.new(spike) and run:
                self._run(now.run, spike)

    def _run(self, run: str, spike: Spike) -> None:
        told = {"RUN": run, "LAYER": spike.layer, "ONSET": spike.onset, "PEAK": spike.peak, "KIND": spike.kind}
        told |= {"RATIO": f"{spike.ratio:.6g}", "Z": f"{spike.z:.6g}"}
        environment = os.environ | {f"STABLAB_{name}": str(value) for name, value in told.items()}
        assert self.command is not None
        code = subprocess.run(self.command, shell=True, env=environment, check=False).returncode
        if code:
            click.echo(f"stablab: warning: --on-spike: the command ended with code {code}", err=True)


class PlainLines:
    """Prints a line for new progress, for each spike that has ended, and for spikes that are withdrawn."""

    def __init__(self) -> None:
        self._iterations = -1
        self._status = ""
        self._reported = ReportedSpikes()

    def show(self, now: Snapshot) -> None:
        for spike in now.over():
            if self._reported.new(spike):
                click.echo(f"spike {_spike(spike, now)}")
        for layer, onset in self._reported.withdrawn(now):
            click.echo(f"withdrawn: {clean(layer, 32)} at {onset} is not a spike, given the later values")
        if (now.iterations, now.status) != (self._iterations, self._status):
            click.echo("  ".join([clean(now.run), now.status, *_progress(now), *_numbers(now)]))
        self._iterations, self._status = now.iterations, now.status


def view(now: Snapshot, console: Console) -> Group:
    """The full view, fitted to the width of the console."""
    from rich.console import Group
    from rich.text import Text

    width = min(console.width, 100)
    unicode = (console.encoding or "").lower().startswith("utf")
    head = Text("  ".join([clean(now.run), now.status, *_progress(now)]), overflow="ellipsis", no_wrap=True)
    parts: list[Text | Table] = [head]
    if now.total:
        done = round(width * min(now.iterations / now.total, 1))
        parts.append(Text(("━" * done + "╌" * (width - done)) if unicode else "#" * done + "." * (width - done)))
    if not now.iterations:
        parts.append(Text("nothing recorded yet"))
    for name, values, form in (("loss", now.loss, ".3f"), (_metric(now), now.evals, ".4g")):
        finite = values[np.isfinite(values)]
        if len(finite):
            prefix = f"{name:<4} {values[-1]:{form}} "
            parts.append(Text(prefix + sparkline(values, width - len(prefix), _BARS if unicode else _PLAIN_BARS)))
    if now.layers:
        parts += [Text(), _layer_table(now)]
        if len(now.layers) > _LAYERS:
            parts.append(Text(f"and {len(now.layers) - _LAYERS} more, below these"))
    elif now.iterations:
        parts += [Text(), Text("no gradients recorded (train with --log-grads)")]
    if now.layers:
        since = f" since iteration {now.since}" if now.since else ""
        parts += [Text(), Text(f"spikes{since}: {len(now.spikes)}" + (", the last:" if now.spikes else ""))]
        parts += [
            Text(f"  {_spike(spike, now)}", overflow="ellipsis", no_wrap=True) for spike in now.spikes[-_SPIKES:][::-1]
        ]
    parts += [Text(clean(event), overflow="ellipsis", no_wrap=True) for event in now.events[-3:]]
    return Group(*parts)


def _layer_table(now: Snapshot) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("layers by latest z", "norm", "times usual", "z", "last spike"):
        table.add_column(title, justify="left" if title == "layers by latest z" else "right", no_wrap=True)
    last = {spike.layer: spike for spike in now.spikes}
    for layer in now.layers[:_LAYERS]:
        loud = "bold" if layer.z is not None and layer.z >= 6 else ""
        spike = last.get(layer.name)
        cells = (
            clean(layer.name, 32),
            f"{layer.norm:.3g}",
            "" if layer.ratio is None else f"{layer.ratio:.1f}x",
            "too early" if layer.z is None else f"{layer.z:.1f}",
            "" if spike is None else str(spike.onset),
        )
        table.add_row(*(Text(cell, style=loud) for cell in cells))
    return table


def sparkline(values: np.ndarray, width: int, bars: str = _BARS) -> str:
    """The series in at most ``width`` characters, each the mean of a block; ``x`` for blocks without finite values."""
    blocks = np.array_split(np.asarray(values, dtype=float), max(1, min(width, len(values))))
    means = [float(block[np.isfinite(block)].mean()) if np.isfinite(block).any() else float("nan") for block in blocks]
    finite = [mean for mean in means if np.isfinite(mean)]
    if not finite:
        return "x" * len(means)
    low, high = min(finite), max(finite)
    step = (high - low) or 1.0
    return "".join("x" if np.isnan(m) else bars[min(int(8 * (m - low) / step), 7)] for m in means)


def clean(text: str, most: int = 60) -> str:
    """A name on one line, without control characters."""
    shown = "".join(character if character.isprintable() else "?" for character in text)
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def _spike(spike: Spike, now: Snapshot) -> str:
    size = "not finite" if spike.kind == "nonfinite" else f"{spike.ratio:.1f}x, z {spike.z:.1f}"
    provisional = " (provisional)" if now.provisional(spike) else ""
    return f"{clean(spike.layer, 32)} at {spike.onset}: {size}{provisional}"


def _progress(now: Snapshot) -> list[str]:
    parts = [f"{now.iterations}/{now.total}" if now.total else f"{now.iterations} iterations"]
    if now.rate is not None and now.status == "running":
        parts.append(f"{now.rate:.1f} it/s")
    if now.seconds_left is not None:
        parts.append(f"{_duration(now.seconds_left)} left")
    return parts


def _numbers(now: Snapshot) -> list[str]:
    shown = (("loss", now.loss), (_metric(now), now.evals))
    parts = [f"{name} {values[-1]:.3f}" for name, values in shown if len(values)]
    top = next((layer for layer in now.layers if layer.z is not None), None)
    if top is not None:
        parts.append(f"z {top.z:.1f} in {clean(top.name, 32)}")
    return parts


def _metric(now: Snapshot) -> str:
    return "kNN" if now.metric == "knn_top1" else clean(now.metric, 24)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
