"""Are the gradient norms of replayed iterations bit-identical to the recorded ones, also on another processor?

    python benchmarks/replay.py [--count 20] [--iterations 200]

Records a small run, replays random iterations of it from its checkpoints, and again in processes that use other vector
instructions: ATEN_CPU_CAPABILITY=default and avx2.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from stabilitylab.cause.replay import Replay
from stabilitylab.config import resolve
from stabilitylab.studies import train_run


def compare(run: Path, count: int) -> str:
    replay = Replay(run)
    iterations, norms, loss = replay.recorded
    first, last = replay.checkpoints[0], replay.trainer.total
    chosen = np.sort(np.random.default_rng(0).choice(np.arange(first, last), count, replace=False))
    apart, where = [], []
    for at in chosen.tolist():
        trace = replay.future(replay.state_at(at), 1)
        row = int(np.flatnonzero(iterations == at)[0])
        was, now = (np.float32(np.append(n, x)) for n, x in ((norms[row], loss[row]), (trace.norms[0], trace.loss[0])))
        relative = np.nan_to_num(np.abs(now - was) / np.abs(was))
        apart.append(float(relative.max()))
        name = [*replay.names, "the loss"][int(relative.argmax())]
        where.append(f"in {name} at iteration {at}, {replay.distance(at)} after the checkpoint")
    exact = sum(x == 0 for x in apart)
    worst = int(np.argmax(apart))
    largest = f"{apart[worst]:.1e} ({where[worst]})" if apart[worst] else "0"
    return (
        f"{exact} of {count} bit for bit; largest relative difference {largest}, median {np.median(apart):.1e}; "
        f"{replay.check()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--run", type=Path)
    given = parser.parse_args()
    if given.run is not None:
        print(compare(given.run, given.count))
        return
    config = resolve(
        {
            "model": {"img_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
            "method": {"hidden_dim": 64, "out_dim": 32},
            "train": {
                "iterations": given.iterations,
                "batch_size": 32,
                "device": "cpu",
                "checkpoint_every": 20,
                "checkpoint_keep": 99,
            },
            "record": {"log_grads": True},
            "eval": {"knn_every": 0},
        }
    )
    run = train_run(config, Path(tempfile.mkdtemp()), "run").path
    print(f"recorded with {torch.backends.cpu.get_cpu_capability()}")
    print("the same:", compare(run, given.count), flush=True)
    command = [sys.executable, __file__, "--run", str(run), "--count", str(given.count)]
    for capability in ("default", "avx2"):
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        print(f"{capability}:", done.stdout.strip() or done.stderr.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
