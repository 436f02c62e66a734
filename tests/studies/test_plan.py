"""What ``stablab train --plan`` says against what the run then is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stabilitylab.cli import cli
from stabilitylab.config import resolve
from stabilitylab.store.reader import open_run
from stabilitylab.studies import train_run
from stabilitylab.studies.plan import plan, size

SETTINGS = {
    "model": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    "train": {"iterations": 30, "batch_size": 16, "device": "cpu", "checkpoint_every": 10, "checkpoint_keep": 2},
    "record": {"log_grads": True},
    "eval": {"knn_every": 15},
}


def test_the_plan_is_what_the_run_becomes(tmp_path: Path) -> None:
    config = resolve(SETTINGS)
    found = plan(config)
    run = train_run(config, tmp_path).path
    state = torch.load(run / "checkpoints" / "iteration-000030.pt", weights_only=True)
    tensors = [*state["method"].values()]
    moments = [v for s in state["optimizer"]["state"].values() for v in s.values()]
    in_file = sum(t.numel() * t.element_size() for t in [*tensors, *moments])
    assert found.checkpoint == pytest.approx(in_file, rel=0.02)  # buffers of BatchNorm apart
    assert found.checkpoints_bytes == 2 * found.checkpoint
    assert found.gradients == 4 * found.trained
    with open_run(run) as reader:
        assert found.rows == reader.query("select count(*) from layer_stats").fetchone()[0]
        assert found.iterations == reader.num_iterations
    assert found.activations > 16 * 2 * 17 * 16 * 4  # at least the tokens of a block
    assert found.hours * 3600 == pytest.approx(30 * found.seconds_per_step + 3 * found.evaluation_seconds)
    assert found.images_per_second == pytest.approx(16 / found.seconds_per_step)


def test_the_plan_is_printed_and_no_run_is_made(tmp_path: Path) -> None:
    arguments = ["train", "--plan", "--iterations", "10", "--batch-size", "8", "--device", "cpu"]
    done = CliRunner().invoke(cli, [*arguments, "--runs-dir", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.output.splitlines()] == [
        "device", "parameters", "memory", "length", "speed", "time", "disk",
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_sizes_are_written_as_people_do() -> None:
    assert [size(n) for n in (12, 1500, 2.5e6, 7.9e10, 3e12)] == ["12 B", "1.5 kB", "2.5 MB", "79 GB", "3 TB"]
