"""What acts while a run trains: ``record(on_spike=...)``, ``watch --on-spike`` and ``analyze --fail-on``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import stabilitylab
from stabilitylab.analysis.events import Spike
from stabilitylab.cli import cli
from stabilitylab.cli.live import Watcher
from stabilitylab.cli.watch import Alert, PlainLines
from stabilitylab.store.reader import open_run
from tests.cli.test_watch import begin, write
from tests.synthetic import planted_run


def loop(root: Path, told: list[Spike], *, spikes: tuple[int, ...], stop_at_first: bool = False) -> None:
    def on_spike(spike: Spike) -> None:
        told.append(spike)
        if stop_at_first:
            raise RuntimeError("enough")

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    rng = np.random.default_rng(0)
    with stabilitylab.record(model, run="r", runs_dir=root, flush_every=50, on_spike=on_spike) as rec:
        for iteration in range(700):
            size = float(np.exp(rng.normal(0, 0.1))) * (30 if iteration in spikes else 1)
            for p in model.parameters():
                p.grad = torch.full_like(p, size)
            rec.step()


def test_on_spike_is_called_once_for_each_spike(tmp_path: Path) -> None:
    told: list[Spike] = []
    loop(tmp_path, told, spikes=(300, 480))
    assert sorted({spike.onset for spike in told}) == [300, 480]
    assert len(told) == len({(spike.layer, spike.onset) for spike in told})
    assert {spike.layer for spike in told} == {"0", "1"}


def test_on_spike_may_end_the_training_and_nothing_is_lost(tmp_path: Path) -> None:
    told: list[Spike] = []
    with pytest.raises(RuntimeError, match="enough"):
        loop(tmp_path, told, spikes=(300,), stop_at_first=True)
    with open_run(tmp_path / "r") as reader:
        assert reader.num_iterations >= 300
        assert reader.status == "crashed"


def test_watch_runs_a_command_for_new_spikes_only(tmp_path: Path) -> None:
    planted = planted_run(n=2000, count=6)
    heard = tmp_path / "heard"
    with begin(tmp_path, planted) as writer:
        write(writer, planted, 0, 900)
        with open_run(tmp_path / "live", merge=False) as reader:
            watcher, alert = Watcher(reader), Alert(f'echo "$STABLAB_LAYER $STABLAB_ONSET" >> {heard}')
            first = watcher.snapshot()
            alert.note(first, run=False)
            assert not heard.exists()
            write(writer, planted, 900, 2000)
            alert.note(watcher.snapshot())
            alert.note(watcher.snapshot())
    lines = heard.read_text().splitlines()
    assert len(lines) == len(set(lines)) > 0
    assert all(int(line.split()[1]) >= 880 for line in lines)


def test_a_spike_is_provisional_until_the_values_after_it_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = planted_run(n=2000, count=6)
    last = planted.onsets["patch_embed"][2]
    with begin(tmp_path, planted) as writer:
        write(writer, planted, 0, last + 60)
        with open_run(tmp_path / "live", merge=False) as reader:
            watcher = Watcher(reader)
            now = watcher.snapshot()
            assert any(now.provisional(spike) for spike in now.spikes)
            lines = PlainLines()
            lines.show(now)
            assert "(provisional)" in capsys.readouterr().out
            write(writer, planted, last + 60, 2000)
            later = watcher.snapshot()
            assert not any(later.provisional(spike) for spike in later.spikes if spike.onset < 1700)


@pytest.mark.parametrize(
    ("fail_on", "code"), [(["spikes"], 1), (["nonfinite"], 0), (["drift", "collapse"], 0), ([], 0)]
)
def test_fail_on(tmp_path: Path, fail_on: list[str], code: int) -> None:
    planted = planted_run(n=1500, count=6)
    with begin(tmp_path, planted) as writer:
        write(writer, planted, 0, 1500)
    options = [word for name in fail_on for word in ("--fail-on", name)]
    done = CliRunner().invoke(cli, ["analyze", "live", "--runs-dir", str(tmp_path), *options])
    assert done.exit_code == code, done.output
    assert ("stablab: failed:" in done.stderr) == (code == 1)
