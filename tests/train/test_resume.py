"""Killed and resumed, shared by two processes: the same run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stabilitylab.config import resolve
from stabilitylab.errors import ConfigError
from stabilitylab.store.reader import open_run
from stabilitylab.studies import resume_run, train_run
from stabilitylab.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint

SETTINGS = ["--log-grads", "--iterations", "40", "--batch-size", "64", "--device", "cpu"]
SETTINGS += ["--set", "train.checkpoint_every=10", "--set", "eval.knn_every=7"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(
    *args: str, launcher: tuple[str, ...] = (sys.executable,), program: str = "stabilitylab"
) -> subprocess.Popen[str]:
    command = [*launcher, "-m", program, "train", *args]
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def contents(run: Path) -> dict[str, np.ndarray]:
    """All that must not depend on when the run was killed: everything but times and events."""
    queries = {
        "layer_stats": "select * from layer_stats order by iteration, layer_id",
        "iterations": "select * exclude (seconds) from iterations order by iteration",
        "evals": "select * from evals order by iteration, metric",
    }
    with open_run(run) as reader:
        assert reader.verify() == []
        return {table: np.array(reader.query(query).fetchall()) for table, query in queries.items()}


@pytest.mark.slow
def test_killed_and_resumed_is_the_straight_run_to_the_bit(tmp_path: Path) -> None:
    place = ["--runs-dir", str(tmp_path)]
    finish(start(*SETTINGS, *place, "--name", "straight"))
    process = start(*SETTINGS, *place, "--name", "killed")
    folder = tmp_path / "killed" / "checkpoints"
    while process.poll() is None and not (folder / "iteration-000020.pt").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    at = load_checkpoint(folder)["iteration"]
    assert 20 <= at < 40
    finish(start("--resume", "killed", *place))

    straight, killed = contents(tmp_path / "straight"), contents(tmp_path / "killed")
    for table, rows in straight.items():
        np.testing.assert_array_equal(killed[table], rows, err_msg=table)
    assert len(straight["layer_stats"]) == 9 * 40
    ends = [load_checkpoint(tmp_path / run / "checkpoints") for run in ("straight", "killed")]
    for part in ("method", "optimizer"):
        mine, theirs = (torch.utils._pytree.tree_leaves(end[part]) for end in ends)
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    with open_run(tmp_path / "killed") as reader:
        assert reader.status == "finished"
        assert (at, "resume") in [(e.iteration, e.kind) for e in reader.events()]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--micro-batch", "8"], ["--method", "swav"]])
def test_two_processes_train_the_run_of_one(tmp_path: Path, extra: list[str]) -> None:
    settings = ["--log-grads", "--iterations", "10", "--batch-size", "64", "--device", "cpu", *extra]
    settings += ["--set", "optim.warmup_iterations=5", "--set", "eval.knn_every=0", "--runs-dir", str(tmp_path)]
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    one = start(*settings, "--name", "one", program="tests.train.in_double")
    out = finish(start(*settings, "--name", "two", launcher=torchrun, program="tests.train.in_double"))
    assert out.count("two: 10 iterations") == 1  # one process speaks
    finish(one)
    with open_run(tmp_path / "one") as a, open_run(tmp_path / "two") as b:
        losses = [reader.table("iterations")["loss"] for reader in (a, b)]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
        for layer, (_, norms) in a.layer_series().items():
            np.testing.assert_allclose(norms, b.layer_series()[layer][1], rtol=1e-4)
        assert (a.meta["processes"], b.meta["processes"]) == ("1", "2")


def tiny(tmp_path: Path, **train: object) -> Path:
    config = {"train": {"iterations": 4, "batch_size": 32, "device": "cpu", **train}, "eval": {"knn_every": 0}}
    return train_run(resolve(config), tmp_path).path


def test_a_finished_run_has_nothing_to_resume(tmp_path: Path) -> None:
    run = tiny(tmp_path)
    with pytest.raises(ConfigError, match="is finished: 4 of 4 iterations are done"):
        resume_run(run)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    run = tiny(tmp_path)
    config = run / "config.toml"
    config.write_text(
        config.read_text().replace("iterations = 4", "iterations = 8").replace('"vit_nano"', '"vit_tiny"')
    )
    with pytest.raises(ConfigError, match="belongs to another architecture"):
        resume_run(run)
    with open_run(run) as reader:
        assert reader.status == "finished"


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    run = tiny(tmp_path)
    config = run / "config.toml"
    config.write_text(config.read_text().replace("iterations = 4", "iterations = 8").replace('"adamw"', '"lamb"'))
    with pytest.raises(ConfigError, match="belongs to another optimizer or mitigation"):
        resume_run(run)


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_leaves_the_last(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"iteration": 2}, keep=1)
    code = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from stabilitylab.train.checkpoint import save_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try: save_checkpoint(Path(sys.argv[1]), {'iteration': 4, 'x': torch.ones(1 << 20)}, keep=1)\n"
        "except OSError as error: print(error.strerror)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["iteration-000002.pt"]


def test_the_last_good_checkpoint_is_taken(tmp_path: Path) -> None:
    for iteration in (2, 4, 6):
        save_checkpoint(tmp_path, {"iteration": iteration}, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["iteration-000006.pt", "iteration-000004.pt"]
    (tmp_path / "iteration-000006.pt").write_bytes(b"torn")
    with pytest.warns(UserWarning, match=r"iteration-000006.pt cannot be read"):
        assert load_checkpoint(tmp_path)["iteration"] == 4
    (tmp_path / "iteration-000004.pt").unlink()
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(ConfigError, match="no readable checkpoint"),
    ):
        load_checkpoint(tmp_path)


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stabilitylab.train import trainer

    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "save_checkpoint", full)
    with pytest.warns(UserWarning, match="No space left on device; training continues"):
        run = tiny(tmp_path, checkpoint_every=2)
    with open_run(run) as reader:
        assert (reader.status, reader.num_iterations) == ("finished", 4)
        assert [e.iteration for e in reader.events() if e.kind == "checkpoint-failed"] == [2, 4]
