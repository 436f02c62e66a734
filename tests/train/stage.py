"""Iterations START to STOP of one training, by however many processes there are: `test_parity` changes their number.

torchrun --nproc-per-node 4 -m tests.train.stage START STOP FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from stabilitylab.config import resolve
from stabilitylab.recording.recorder import Recorder
from stabilitylab.recording.sink import NullSink
from stabilitylab.train.checkpoint import load_checkpoint
from stabilitylab.train.distributed import describe, leave
from stabilitylab.train.mitigations import applied
from stabilitylab.train.trainer import Trainer
from tests.train.in_double import build_in_double

SETTINGS = {
    "model": {"embed_dim": 16, "depth": 2, "num_heads": 2},
    "method": {"hidden_dim": 24, "out_dim": 8},
    "optim": {"base_lr": 0.02, "warmup_iterations": 2},
    "train": {"iterations": 12, "batch_size": 32, "device": "cpu"},
    "eval": {"knn_every": 0},
}


def main(start: int, stop: int, folder: Path) -> None:
    applied.build_method = build_in_double
    trainer = Trainer(resolve(SETTINGS), describe())
    if start:
        trainer.restore(load_checkpoint(folder / "checkpoints"))
        assert trainer.start == start
    trainer.stop = stop
    losses: list[float] = []
    step = trainer.step

    def noted(*arguments: object) -> torch.Tensor:
        loss = step(*arguments)  # type: ignore[arg-type]
        losses.append(loss.item())
        return loss

    trainer.step = noted  # type: ignore[method-assign,assignment]
    trainer.train(Recorder([], NullSink(), log_grads=False), folder / "checkpoints")
    if trainer.world.main:
        (folder / f"losses-{start}.json").write_text(json.dumps(losses))
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
