"""``stablab watch`` on a run that grows while it is watched, with spikes planted into it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stabilitylab.analysis.results import Spike
from stabilitylab.cli import cli
from stabilitylab.cli.live import Snapshot, Watcher
from stabilitylab.cli.watch import PlainLines, sparkline
from stabilitylab.store.reader import open_run
from stabilitylab.store.schema import LayerRow
from stabilitylab.store.writer import RunWriter
from tests.synthetic import PlantedRun, planted_run

EVIL = "\x1b[31mred\x1b[0m\nlayer [bold]"


def begin(root: Path, planted: PlantedRun, *, config: dict[str, object] | None = None) -> RunWriter:
    rows = [LayerRow(i, layer.name, layer.depth, 10) for i, layer in enumerate(planted.series.layers)]
    config = {"train": {"iterations": planted.series.iterations}} if config is None else config
    return RunWriter.create(root / "live", config=config, meta={}, layers=rows)


def write(writer: RunWriter, planted: PlantedRun, start: int, stop: int, *, every: int = 1) -> None:
    """Publish values ``start`` to ``stop``, ``every`` iterations apart: half a second each, the loss falling."""
    iteration = every * np.arange(start, stop)
    for layer_id, layer in enumerate(planted.series.layers):
        ids = np.full(len(iteration), layer_id)
        norms = layer.grad_norm[start:stop]
        writer.append("layer_stats", {"iteration": iteration, "layer_id": ids, "grad_norm": norms})
    loss = 5 - iteration / every / 1000
    columns = {"iteration": iteration, "epoch": iteration / 100, "loss": loss, "seconds": np.full(len(iteration), 0.5)}
    writer.append("iterations", columns)
    curve = planted.series.evals["knn_top1"]
    inside = (curve.iteration >= start) & (curve.iteration < stop)
    metric = np.full(inside.sum(), "knn_top1")
    writer.append(
        "evals", {"iteration": every * curve.iteration[inside], "metric": metric, "value": curve.value[inside]}
    )
    writer.publish(wait=True)


def once(root: Path, *, encoding: str | None = None) -> str:
    environment = {"COLUMNS": "80"} | ({"PYTHONIOENCODING": encoding} if encoding else {})
    done = CliRunner().invoke(cli, ["watch", "live", "--once", "--runs-dir", str(root)], env=environment)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_run_that_is_being_written(tmp_path: Path) -> None:
    planted = planted_run(n=3000)
    with begin(tmp_path, planted) as writer:
        assert "nothing recorded yet" in once(tmp_path)
        write(writer, planted, 0, 1200)
        shown = once(tmp_path)
    lines = shown.splitlines()
    assert lines[0] == "live  running  1200/3000  2.0 it/s  15 min left"
    assert max(map(len, lines)) <= 80
    assert "loss 3.801 " in shown
    seen = [onset for onset in planted.onsets["patch_embed"] if onset < 1190]
    assert f"patch_embed at {seen[-1]}: " in shown
    assert f"spikes: {sum(o < 1197 for onsets in planted.onsets.values() for o in onsets)}" in shown


@pytest.mark.parametrize("every", [1, 10])
def test_looking_at_the_tail_again_and_again_finds_what_one_look_finds(tmp_path: Path, every: int) -> None:
    planted = planted_run(n=6000, count=24)
    with begin(tmp_path, planted) as writer:
        write(writer, planted, 0, 100, every=every)
        with open_run(tmp_path / "live", merge=False) as reader:
            watcher = Watcher(reader)
            watcher.snapshot()
            for start in range(100, 6000, 590):
                write(writer, planted, start, start + 590, every=every)
                now = watcher.snapshot()
    assert now.iterations == 5999 * every + 1
    assert now.seconds_left == 0
    for name, onsets in planted.onsets.items():
        found = [spike.onset for spike in now.spikes if spike.layer == name]
        assert len(found) == len(onsets)
        assert all(abs(a / every - b) <= 2 for a, b in zip(found, onsets, strict=True))


def test_a_long_run_is_looked_at_from_late_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stabilitylab.cli.live.FIRST", 1800)
    planted = planted_run(n=4000, count=16)
    with begin(tmp_path, planted) as writer:
        write(writer, planted, 0, 4000)
        with open_run(tmp_path / "live", merge=False) as reader:
            now = Watcher(reader).snapshot()
        assert "spikes since iteration 2200: " in once(tmp_path)
    wanted = [onset for onset in planted.onsets["projector"] if onset >= 2260]
    found = [spike.onset for spike in now.spikes if spike.layer == "projector" and spike.onset >= 2260]
    assert found == pytest.approx(wanted, abs=2)
    assert all(spike.onset >= 2200 for spike in now.spikes)


def test_the_layer_that_spikes_now_stands_first(tmp_path: Path) -> None:
    planted = planted_run(n=3000)
    last = planted.onsets["blocks.1"][6]
    with begin(tmp_path, planted) as writer:
        write(writer, planted, 0, last + 1)
        with open_run(tmp_path / "live", merge=False) as reader:
            top = Watcher(reader).snapshot().layers[0]
    assert top.name == "blocks.1"
    x = np.log(planted.series.layers[2].grad_norm)
    flagged = {o + k for o in planted.onsets["blocks.1"][:6] for k in range(5)}
    usual = np.median([x[i] for i in range(last - 250, last) if i not in flagged][-200:])
    assert top.ratio == pytest.approx(np.exp(x[last] - usual), rel=0.05)
    assert top.z is not None
    assert top.z > 6


def test_a_pipe_gets_plain_lines_until_the_run_ends(tmp_path: Path) -> None:
    planted = planted_run(n=2000, count=8)
    with begin(tmp_path, planted) as writer:
        write(writer, planted, 0, 700)
        command = [sys.executable, "-m", "stabilitylab", "watch", "live", "--every", "0.2", "--runs-dir", str(tmp_path)]
        watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        assert watching.stdout is not None
        lines = []
        while not lines or "live  running  700/2000" not in lines[-1]:
            lines.append(watching.stdout.readline())
            assert lines[-1], "it ended early"
        write(writer, planted, 700, 2000)
        writer.close("finished")
        rest, _ = watching.communicate(timeout=60)
    lines += rest.splitlines(keepends=True)
    assert watching.returncode == 0
    assert lines[-1].startswith("live  finished  2000/2000  loss 3.001  kNN ")
    told = [line for line in lines if line.startswith("spike ")]
    wanted = {f"spike {layer} at {onset}: " for layer, onsets in planted.onsets.items() for onset in onsets}
    assert {line[: line.index(":") + 2] for line in told} == wanted
    assert len(told) == len(wanted)
    assert not any("\x1b" in line for line in lines)


def test_a_name_cannot_steer_the_terminal(tmp_path: Path) -> None:
    planted = planted_run(n=500, count=1, layers=(EVIL, "predictor"))
    with begin(tmp_path, planted) as writer:
        write(writer, planted, 0, 500)
        writer.event(10, "nonfinite", "\x1b[2J")
        writer.publish(wait=True)
        shown = once(tmp_path)
    assert "\x1b" not in shown
    assert "?[31mred?[0m?layer [bold]" in shown


@pytest.mark.parametrize("status", ["finished", "stopped"])
def test_a_run_without_gradients_or_length_still_shows(tmp_path: Path, status: str) -> None:
    with RunWriter.create(tmp_path / "live", config={}, meta={}, layers=[]) as writer:
        writer.append("iterations", {"iteration": [0, 1, 2], "loss": [3.0, float("nan"), 1.0]})
        writer.close(status)
    shown = once(tmp_path)
    assert f"live  {status}  3 iterations" in shown
    assert "no gradients recorded" in shown
    assert "x" in next(line for line in shown.splitlines() if line.startswith("loss"))


def test_the_time_left_is_counted_in_epochs_too(tmp_path: Path) -> None:
    planted = planted_run(n=500, count=1)
    with begin(tmp_path, planted, config={"train": {"epochs": 20}}) as writer:
        write(writer, planted, 0, 500)
        assert "500/2000  2.0 it/s  12 min left" in once(tmp_path)


def test_a_run_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stabilitylab", "watch", "nope", "--runs-dir", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no run 'nope'" in done.stderr


def test_a_sparkline_shows_the_mean_of_each_block() -> None:
    assert sparkline(np.arange(8.0), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.array([0.0, 0.0, 7.0, 7.0]), 2) == "▁█"
    assert sparkline(np.array([1.0, np.nan, 2.0]), 3) == "▁x█"
    assert sparkline(np.full(5, np.nan), 3) == "xxx"
    assert sparkline(np.array([2.0]), 10) == "▁"


def test_time_left_needs_a_running_run_with_a_rate() -> None:
    def left(status: str, total: int | None, rate: float | None) -> float | None:
        nothing = np.array([])
        return Snapshot("r", status, 40, total, rate, nothing, nothing, (), (), ()).seconds_left

    assert left("running", 100, 2.0) == 30
    assert left("running", 30, 2.0) == 0
    assert left("finished", 100, 2.0) is None
    assert left("running", None, 2.0) is None
    assert left("running", 100, None) is None


def test_a_terminal_gets_a_live_view(tmp_path: Path) -> None:
    planted = planted_run(n=1000, count=3)
    with begin(tmp_path, planted) as writer:
        write(writer, planted, 0, 600)
        ours, theirs = pty.openpty()
        environment = os.environ | {"COLUMNS": "80", "LINES": "40", "TERM": "xterm"}
        command = [sys.executable, "-m", "stabilitylab", "watch", "live", "--every", "0.2", "--runs-dir", str(tmp_path)]
        watching = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        shown = read_until(ours, "live  running  600/1000")
        write(writer, planted, 600, 1000)
        writer.close("finished")
        shown += read_until(ours, "live  finished  1000/1000")
        while watching.poll() is None:
            read_until(ours, "")
    os.close(ours)
    assert watching.returncode == 0
    assert "layers by latest z" in shown


def read_until(terminal: int, wanted: str, seconds: float = 60) -> str:
    """What a terminal shows until ``wanted`` stands there; empty: what there is within a tenth of a second."""
    shown = ""
    end = time.monotonic() + (seconds if wanted else 0.1)
    while time.monotonic() < end and not (wanted and wanted in shown):
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # the other side is closed
                break
    assert wanted in shown, shown
    return shown


def test_a_pipe_is_told_every_spike_once_however_they_overlap(capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace as changed

    nothing = np.array([])
    lines, now = PlainLines(), Snapshot("r", "running", 0, 500, 1.0, nothing, nothing, (), (), ())
    early, late = Spike("a", 100, 100, 101, 3.0, 9.0), Spike("b", 100, 110, 120, 4.0, 8.0)
    for iterations, onset in ((110, 100), (130, 100), (140, 103)):  # what follows may move an onset
        lines.show(changed(now, iterations=iterations, spikes=(early, changed(late, onset=onset))))
    assert capsys.readouterr().out.count("spike ") == 2
