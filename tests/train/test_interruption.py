"""A scheduler's signal stops training with a checkpoint, and the requeued command resumes the same run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stabilitylab.config import resolve
from stabilitylab.errors import ConfigError
from stabilitylab.store.reader import open_run
from stabilitylab.studies import train_run
from stabilitylab.studies.requeue import check_same, is_restart, requeue
from stabilitylab.train.checkpoint import load_checkpoint

SETTINGS = ["--log-grads", "--iterations", "120", "--batch-size", "16", "--device", "cpu", "--name", "r"]
SETTINGS += ["--set", "train.checkpoint_every=0", "--set", "eval.knn_every=0", "--set", "record.flush_seconds=0.2"]


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stabilitylab", "train", *SETTINGS, "--runs-dir", str(folder)]
    return subprocess.Popen(
        command, env=os.environ | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def recorded(run: Path) -> np.ndarray:
    with open_run(run) as reader:
        assert reader.status == "finished"
        return np.array(reader.query("select * from layer_stats order by iteration, layer_id").fetchall())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_interrupted_requeued_and_resumed_by_the_same_command(tmp_path: Path, number: signal.Signals) -> None:
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    fake.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "77", "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    process = start(tmp_path / "cut", **slurm)
    while process.poll() is None and len(list((tmp_path / "cut" / "r" / "segments").glob("*iterations*"))) < 2:
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert f"r: stopped: interrupted by {number.name}" in out
    assert "requeued: the same command resumes it" in out
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    at = load_checkpoint(tmp_path / "cut" / "r" / "checkpoints")["iteration"]
    assert 0 < at < 120
    with open_run(tmp_path / "cut" / "r") as reader:
        assert reader.status == "stopped"
        assert (at, "interrupted", number.name) in [(e.iteration, e.kind, e.detail) for e in reader.events()]
    again = start(tmp_path / "cut", SLURM_RESTART_COUNT="1", **slurm)
    straight = start(tmp_path / "straight")
    for other in (again, straight):
        assert other.communicate(timeout=200)[1] is not None
        assert other.returncode == 0
    np.testing.assert_array_equal(recorded(tmp_path / "cut" / "r"), recorded(tmp_path / "straight" / "r"))


def test_a_restart_is_told_by_slurm_and_must_be_of_the_same_configuration(tmp_path: Path) -> None:
    assert [is_restart(e) for e in ({}, {"SLURM_RESTART_COUNT": "0"}, {"SLURM_RESTART_COUNT": "2"})] == [
        False,
        False,
        True,
    ]
    assert requeue({}) is False
    settings = {"train": {"iterations": 1, "batch_size": 8, "device": "cpu"}, "eval": {"knn_every": 0}}
    run = train_run(resolve(settings), tmp_path, "r").path
    check_same(run, resolve(settings))
    with pytest.raises(ConfigError, match="run r exists with a configuration that differs"):
        check_same(run, resolve(settings | {"optim": {"base_lr": 0.5}}))
