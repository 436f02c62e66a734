"""A run replays bit for bit, and what cannot be replayed is refused before anything runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stabilitylab.cause.replay import Replay
from stabilitylab.errors import ConfigError
from stabilitylab.store.writer import RunWriter
from stabilitylab.train.checkpoint import load_checkpoint


def test_any_iteration_replays_bit_for_bit(recorded: Path) -> None:
    replay = Replay(recorded)
    iterations, norms, loss = replay.recorded
    for at in np.random.default_rng(0).integers(5, 60, 5).tolist():  # between checkpoints too
        trace = replay.future(replay.state_at(at), 1)
        row = int(np.flatnonzero(iterations == at)[0])
        np.testing.assert_array_equal(np.float32(trace.norms[0]), np.float32(norms[row]))
        assert np.float32(trace.loss[0]) == np.float32(loss[row])
    assert replay.check(40).exact
    assert str(replay.check(42)) == "replay check: iterations 40, 41 reproduce the recorded norms bit for bit"


def test_a_replay_leaves_the_run_as_it_was(recorded: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in recorded.rglob("*")}
    replay = Replay(recorded)
    state = replay.state_at(43)
    first, again = replay.future(state, 8), replay.future(state, 8)
    np.testing.assert_array_equal(first.norms, again.norms)
    replay.check()
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in recorded.rglob("*")} == before


def test_other_batches_from_the_same_state(recorded: Path) -> None:
    replay = Replay(recorded)
    state = replay.state_at(40)
    own, other = replay.future(state, 3), replay.future(state, 3, batches=20)
    assert not np.array_equal(own.norms[0], other.norms[0])
    np.testing.assert_array_equal(own.norms, replay.future(state, 3, batches=40).norms)


@pytest.mark.slow
def test_another_processor_is_measured_and_told(recorded: Path) -> None:
    """The same machine, told to use no vector instructions."""
    code = "import sys; from pathlib import Path; from stabilitylab.cause.replay import Replay; "
    code += "print(Replay(Path(sys.argv[1])).check(50))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(recorded)],
        env=os.environ | {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        ("replay check: norms differ from the recorded ones by up to", "replay check: iterat")
    )


def copied(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "run"))


def test_another_data_set_is_refused_with_the_size_of_the_difference(recorded: Path, tmp_path: Path) -> None:
    run = copied(recorded, tmp_path)
    config = (run / "config.toml").read_text().replace("limit = 200", "limit = 150")
    (run / "config.toml").write_text(config)
    with pytest.raises(ConfigError, match=r"cannot be replayed here: at iteration \d+ the gradient norm of .* differs"):
        Replay(run).check(40)


def test_a_run_without_what_a_replay_needs_is_told_what_to_keep(recorded: Path, tmp_path: Path) -> None:
    replay = Replay(recorded)
    with pytest.raises(
        ConfigError, match=r"no checkpoint at or before iteration 4 \(checkpoints: 5, .*--keep-before-spikes"
    ):
        replay.require([4])
    with pytest.raises(ConfigError, match=r"has 60 iterations, but the experiment needs 20 from iteration 50 on"):
        replay.require([30, 50], 20)
    with pytest.raises(ConfigError, match=r"has no layer 'block.0'; its layers: patch_embed, "):
        replay.layer("block.0")
    run = copied(recorded, tmp_path)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ConfigError, match="cannot be replayed: keep checkpoints next time"):
        Replay(run)
    (run / "config.toml").unlink()
    with pytest.raises(ConfigError, match=r"it was not trained by `stablab train`.*stabilitylab\.cause\.impulse"):
        Replay(run)


def test_an_older_checkpoint_format_or_a_frozen_layer_is_refused(recorded: Path, tmp_path: Path) -> None:
    run = copied(recorded, tmp_path)
    config = (run / "config.toml").read_text().replace("mitigation = []", 'mitigation = ["frozen-patch"]')
    (run / "config.toml").write_text(config)
    replay = Replay(run)
    with pytest.raises(ConfigError, match="layer 'patch_embed' of run run has no trained weights"):
        replay.layer("patch_embed")
    with pytest.raises(ConfigError, match="belongs to another optimizer or mitigation"):
        replay.check(40)


def test_a_state_is_what_the_checkpoint_holds(recorded: Path) -> None:
    replay = Replay(recorded)
    kept, made = load_checkpoint(recorded / "checkpoints", 45), replay.state_at(45)
    stepped = (replay.trainer.restore(load_checkpoint(recorded / "checkpoints", 40)), replay.run(40, 5))[1]
    assert len(stepped.loss) == 5
    again = replay.trainer.state(45)
    for state in (made, again):
        assert state["iteration"] == 45
        assert all(torch.equal(state["method"][name], kept["method"][name]) for name in kept["method"])
        for index, entry in kept["optimizer"]["state"].items():
            assert all(torch.equal(entry[k], state["optimizer"]["state"][index][k]) for k in entry)


def test_a_run_that_records_rarely_is_checked_where_it_recorded(recorded: Path, tmp_path: Path) -> None:
    run = copied(recorded, tmp_path)
    with RunWriter.annotate(run) as writer:
        writer.event(0, "note", "annotated")
    assert Replay(run).check(59).iterations == (55, 56)


def test_a_run_without_norms_does_not_claim_them(recorded: Path, tmp_path: Path) -> None:
    replay = Replay(copied(recorded, tmp_path))
    iterations, norms, loss = replay.recorded
    replay.recorded = (iterations, np.full_like(norms, np.nan), loss)
    assert str(replay.check(40)).endswith("reproduce the recorded loss bit for bit; no norms were recorded")
