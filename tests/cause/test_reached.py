"""An experiment on a run that ended early starts no later than the run did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stabilitylab.cause.branch import branch_run
from stabilitylab.cause.replay import Replay
from stabilitylab.errors import ConfigError
from stabilitylab.methods.mocov3 import MoCoV3
from stabilitylab.studies import train_run
from tests.cause.conftest import tiny_config


def test_iterations_that_a_run_never_reached_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the 14th iteration is NaN, which ends the run; its last checkpoint is before iteration 10."""
    healthy, calls = MoCoV3.loss, 0

    def loss(self: MoCoV3, *features: list[torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return healthy(self, *features) * (float("nan") if calls == 14 else 1.0)

    monkeypatch.setattr(MoCoV3, "loss", loss)
    run = train_run(tiny_config(), tmp_path, "run").path
    replay = Replay(run)
    replay.require([10, 14])
    message = "run run reached iteration 14, not 15; choose an earlier iteration"
    with pytest.raises(ConfigError, match=message):
        replay.require([10, 15])
    with pytest.raises(ConfigError, match=message):
        branch_run(run, 15, ("frozen-patch",), tmp_path / "branches")
    assert not (tmp_path / "branches").exists()
