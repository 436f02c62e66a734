"""The demo's chain at tiny size, and what a user sees on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stabilitylab.store.reader import open_run
from tests.cli.conftest import Stablab

TINY = [
    *("--set", "model.embed_dim=32", "--set", "model.depth=2", "--batch-size", "32"),
    *("--set", "data.limit=300", "--set", "eval.knn_every=10"),
]


def test_train_analyze_report(stablab: Stablab, tmp_path: Path) -> None:
    done = stablab("train", "--log-grads", "--iterations", "40", *TINY)
    assert "run_001: 40 iterations, kNN top-1 0." in done.stdout
    assert done.stdout.endswith("next: stablab analyze run_001\n")
    stablab("train", "--log-grads", "--iterations", "40", *TINY, "--mitigation", "frozen-patch")

    answer = json.loads(stablab("analyze", "run_002", "--format", "json").stdout)
    assert (answer["schema"], answer["run"], answer["iterations"]) == (1, "run_002", 40)
    assert [layer["name"] for layer in answer["layers"]][:2] == ["patch_embed", "tokens"]
    assert answer["lag"]["from"] == "tokens"  # the first that is trained
    only = json.loads(stablab("analyze", "run_001", "--spikes", "--format", "json").stdout)
    assert "spikes" in only
    assert "lag" not in only
    assert "spikes:" in stablab("analyze", "run_001").stdout
    assert stablab("analyze", "run_001", "--format", "csv").stdout.startswith("event,layer,start,peak,end,size,z\n")

    listing = json.loads(stablab("runs", "--format", "json").stdout)
    assert [(row["run"], row["status"], row["mitigation"]) for row in listing] == [
        ("run_001", "finished", []),
        ("run_002", "finished", ["frozen-patch"]),
    ]
    counted = stablab("sql", "run_001", "select count(*) as n from layer_stats", "--format", "json").stdout
    assert json.loads(counted) == [{"n": 40 * 7}]

    assert stablab("report", "run_001", "run_002", "-o", "r.html").stdout == "report: r.html\n"
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "frozen-patch" in html
    assert 'src="http' not in html


def test_a_resolved_configuration_trains_the_same_run(stablab: Stablab, tmp_path: Path) -> None:
    flags = ["--log-grads", "--iterations", "3", "--base-lr", "0.01", *TINY]
    (tmp_path / "run.toml").write_text(stablab("train", "--dry-run", *flags).stdout)
    stablab("train", *flags)
    stablab("train", "--config", "run.toml")
    losses = [
        stablab("sql", run, "select loss from iterations", "--format", "csv").stdout for run in ("run_001", "run_002")
    ]
    assert losses[0] == losses[1]


def test_planted_spikes_come_out_of_an_imported_csv(stablab: Stablab, tmp_path: Path) -> None:
    from tests.synthetic import planted_grads_csv

    planted = planted_grads_csv(tmp_path / "grads.csv", lag=20, seed=3)
    stablab("import", "csv", "--grads", "grads.csv", "--name", "planted")
    answer = json.loads(stablab("analyze", "planted", "--format", "json").stdout)
    found = {name: [s["onset"] for s in answer["spikes"] if s["layer"] == name] for name in planted.onsets}
    for name, onsets in planted.onsets.items():
        for onset in onsets:
            assert min(abs(onset - other) for other in found[name]) <= 2
        assert len(found[name]) <= len(onsets) + 1
    assert abs(answer["lag"]["median_iterations"] - 20) <= 1
    low, high = answer["lag"]["ci95"]
    assert low <= 20 <= high
    assert answer["lag"]["p_value"] < 0.05


def test_the_demo_at_tiny_size(stablab: Stablab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed a side in one worker, beside an earlier demo."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    earlier = tmp_path / "runs" / "demo_learned"
    earlier.mkdir(parents=True)
    done = stablab("demo", "--iterations", "20", "--seeds", "1")
    assert "report: runs/demo_report_2.html" in done.stdout
    assert (tmp_path / "runs" / "demo_report_2.html").stat().st_size > 100_000
    assert {p.name for p in (tmp_path / "runs").iterdir() if p.is_dir()} == {
        "demo_learned",
        "demo_learned_2",
        "demo_frozen_2",
    }
    assert list(earlier.iterdir()) == []
    for name, mitigation in (("demo_learned_2", ()), ("demo_frozen_2", ("frozen-patch",))):
        with open_run(tmp_path / "runs" / name) as reader:
            assert (reader.status, reader.num_iterations) == ("finished", 20)
            assert tuple(json.loads(reader.meta["config"])["mitigation"]) == mitigation
    assert "default: 3" in stablab("demo", "--help").stdout.partition("--seeds")[2]


@pytest.fixture
def training(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A training of 4,000 iterations in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "stabilitylab",
        "train",
        "--log-grads",
        "--iterations",
        "4000",
        "--name",
        "live",
        *TINY,
    ]
    overrides = ["--set", "record.flush_every=20", "--set", "eval.knn_every=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "STABLAB_RUNS": str(tmp_path / "runs")}
    process = subprocess.Popen([*command, *overrides], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def wait_for(path: Path, iterations: int) -> int:
    """Wait until the run holds that many iterations; return how many it holds."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists():
            with open_run(path) as reader:
                if reader.num_iterations >= iterations:
                    return reader.num_iterations
        time.sleep(0.2)
    raise AssertionError(f"{path} did not reach {iterations} iterations")


def test_a_live_run_can_be_analysed_and_a_killed_one_opens(
    training: subprocess.Popen[bytes], stablab: Stablab, tmp_path: Path
) -> None:
    live = tmp_path / "runs" / "live"
    seen = wait_for(live, 100)
    assert "still running" in stablab("analyze", "live").stdout
    assert json.loads(stablab("analyze", "live", "--format", "json").stdout)["iterations"] >= seen
    assert json.loads(stablab("runs", "--format", "json").stdout)[0]["status"] == "running"
    assert wait_for(live, seen + 60) > seen  # training went on meanwhile

    os.kill(training.pid, signal.SIGKILL)
    training.wait()
    with open_run(live) as reader:
        assert reader.status == "crashed"
        kept = reader.num_iterations
        assert reader.problems == []
        rows = reader.query("select count(*), count(distinct (layer_id, iteration)) from layer_stats").fetchall()
        assert rows == [(7 * kept, 7 * kept)]
    assert kept >= seen + 60
    assert json.loads(stablab("runs", "--format", "json").stdout)[0]["status"] == "crashed"
    assert "spikes:" in stablab("analyze", "live").stdout
