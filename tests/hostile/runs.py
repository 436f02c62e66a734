"""Small runs for hostile tests, and what a folder holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from stabilitylab.store.writer import LayerRow, RunWriter

LAYERS = [LayerRow(0, "patch_embed", 0, 10), LayerRow(1, "blocks.0", 1, 20)]


def fill(writer: RunWriter, first: int, last: int) -> None:
    """Iterations ``first`` to ``last``: the norm of layer i at t is t + i / 10 + 1."""
    t = np.arange(first, last)
    for i in range(len(LAYERS)):
        writer.append("layer_stats", {"iteration": t, "layer_id": i, "grad_norm": t + i / 10 + 1})
    writer.append("iterations", {"iteration": t, "loss": np.ones(len(t))})


def make_run(run_dir: Path, iterations: int = 60, *, finish: bool = True) -> Path:
    """A finished run, or one whose writer was killed (its segments are there, nobody holds the lock)."""
    run_dir.mkdir(parents=True)
    writer = RunWriter.create(run_dir, config={"train": {"seed": 1}}, meta={}, layers=LAYERS)
    fill(writer, 0, iterations // 2)
    writer.publish(wait=True)
    fill(writer, iterations // 2, iterations)
    writer.append(
        "evals", {"iteration": [10, 50], "metric": "knn_top1", "value": [0.5, 0.75], "num_samples": [100, None]}
    )
    writer.publish(wait=True)
    if finish:
        writer.close("finished")
    else:
        abandon(writer)
    return run_dir


def abandon(writer: RunWriter) -> None:
    """As SIGKILL leaves it: nothing more is written, the kernel drops the lock."""
    writer._closed = True
    writer._lock.release()


def contents(folder: Path, *but: str) -> dict[str, str]:
    """Relative path -> sha256 of each file, lock files and ``but`` left out."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("writer.lock", "compact.lock", *but)
    }
