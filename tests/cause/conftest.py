"""One small recorded run, with a checkpoint every five iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stabilitylab.config import Config, resolve
from stabilitylab.studies import train_run


def tiny_config(method: str = "mocov3", **train: Any) -> Config:
    return resolve(
        {
            "data": {"limit": 200},
            "model": {"img_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
            "method": {"name": method, "hidden_dim": 16, "out_dim": 8},
            "optim": {"warmup_iterations": 2, "base_lr": 0.01},
            "train": {
                "iterations": 60,
                "batch_size": 16,
                "device": "cpu",
                "checkpoint_every": 5,
                "checkpoint_keep": 20,
                **train,
            },
            "record": {"log_grads": True},
            "eval": {"knn_every": 20},
        }
    )


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 iterations. Tests must not change it."""
    return train_run(tiny_config(), tmp_path_factory.mktemp("recorded"), "run").path
