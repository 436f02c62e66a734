"""How often `stablab cause swap` correctly identifies a planted bad batch and a planted bad state.

    python benchmarks/swap.py [--seeds 0:20]

Small MoCo v3 runs with different seeds. Bad batch: the loss of one batch is multiplied by twenty (images alone hardly
change a self-supervised gradient). Bad state: the weights of the blocks are perturbed in a checkpoint, from which
training resumes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from stabilitylab.cause.kicks import kick
from stabilitylab.cause.swap import swap_run
from stabilitylab.config import Config, resolve
from stabilitylab.data.batches import MemoryBatches
from stabilitylab.errors import StabilityLabError
from stabilitylab.studies import train_run
from stabilitylab.studies.running import resume_run
from stabilitylab.train.checkpoint import checkpoints, iteration_of
from stabilitylab.train.large_batch import CutStep

BAD, STATE, MARK = 43, 40, 123.0
_iterate, _step = MemoryBatches.iterate, CutStep.__call__


def marked(self: MemoryBatches, start: int, stop: int) -> Iterator[list[Tensor]]:
    for t, views in enumerate(_iterate(self, start, stop), start):
        if t == BAD:
            views[0][0, 0, 0, 0] = MARK
        yield views


def heavier(self: CutStep, views: list[Tensor], scale: Callable[[Tensor], Tensor], iteration: int) -> Tensor:
    heavy = views[0][0, 0, 0, 0] == MARK
    return _step(self, views, (lambda loss: 20 * scale(loss)) if heavy else scale, iteration)


def config(seed: int) -> Config:
    return resolve(
        {
            "data": {"limit": 200},
            "model": {"img_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
            "method": {"hidden_dim": 16, "out_dim": 8},
            "optim": {"warmup_iterations": 2, "base_lr": 0.01},
            "train": {"iterations": 60, "batch_size": 16, "device": "cpu", "seed": seed, "checkpoint_every": 5}
            | {"checkpoint_keep": 20},
            "record": {"log_grads": True},
            "eval": {"knn_every": 0},
        }
    )


def with_bad_state(run: Path, seed: int) -> Path:
    for path in checkpoints(run / "checkpoints"):
        if iteration_of(path) > STATE:
            path.unlink()
    path = checkpoints(run / "checkpoints")[0]
    state = torch.load(path, weights_only=True)
    for i, (name, values) in enumerate(sorted(state["method"].items())):
        if name.startswith("base_encoder.blocks.") and name.endswith("weight"):
            weights = nn.Parameter(values)
            kick([weights], 6.0, torch.Generator().manual_seed(1000 * seed + i))
            state["method"][name] = weights.detach()
    torch.save(state, path)
    return resume_run(run).path


def verdict(run: Path, at: int) -> str:
    try:
        return swap_run(run, at=at).verdict
    except StabilityLabError as error:
        return f"refused: {str(error)[:60]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:20")
    first, last = map(int, parser.parse_args().seeds.split(":"))
    root = Path(tempfile.mkdtemp())
    found: dict[str, Counter[str]] = {"bad batch": Counter(), "bad state": Counter()}
    for seed in range(first, last):
        MemoryBatches.iterate, CutStep.__call__ = marked, heavier  # type: ignore[method-assign]
        found["bad batch"][verdict(train_run(config(seed), root, f"batch{seed}").path, BAD)] += 1
        MemoryBatches.iterate, CutStep.__call__ = _iterate, _step  # type: ignore[method-assign]
        run = train_run(config(seed), root, f"state{seed}").path
        found["bad state"][verdict(with_bad_state(run, seed), STATE)] += 1
        print({name: dict(counts) for name, counts in found.items()}, flush=True)


if __name__ == "__main__":
    main()
