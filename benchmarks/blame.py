"""How often `stablab cause blame` ranks a planted image first: blank, saturated, or with a positive of another image.

    python benchmarks/blame.py [--batches 20] [--iterations 200] [--runs-dir DIR]

Trains a small MoCo v3, SimCLR and BYOL on digits, plants one image in each of several batches, and ranks the images by
part and by novelty, in the first layer and in the last block. With a batch of 64, chance ranks it first in 1 of 64.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from stabilitylab.cause.per_image import contributions
from stabilitylab.cause.replay import Replay
from stabilitylab.config import resolve
from stabilitylab.studies.restarting import train_or_resume

METHODS = ("mocov3", "simclr", "byol")
KINDS = ("blank", "saturated", "mislabeled")
PLACE = 5


def trained(method: str, iterations: int, root: Path) -> Replay:
    config = resolve(
        {
            "method": {"name": method},
            "model": {"img_size": 12, "embed_dim": 32, "depth": 3, "num_heads": 4},
            "optim": {"base_lr": 8e-3},
            "train": {"iterations": iterations, "batch_size": 64, "device": "cpu", "checkpoint_every": iterations - 50},
            "record": {"log_grads": True},
            "eval": {"knn_every": 0},
        }
    )
    return Replay(train_or_resume(config, root, method))


def planted(replay: Replay, kind: str, at: int) -> list[torch.Tensor]:
    """The views of batch ``at`` with one image replaced."""
    batches = replay.trainer.batches
    images = batches.images
    index = replay.order(at)[PLACE]
    changed = images.clone()
    if kind != "mislabeled":
        changed[index] = 0 if kind == "blank" else 255
    batches.images = changed
    (views,) = replay.views(at, 1)
    batches.images = images
    views = [view.clone() for view in views]
    if kind == "mislabeled":
        views[1][PLACE] = views[1][PLACE + 1]
    return views


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--runs-dir")
    given = parser.parse_args()
    root = Path(given.runs_dir or tempfile.mkdtemp())
    print(f"{'method':8} {'image':11} {'layer':12} {'first by part':>14} {'first by novelty':>17} {'median ranks':>13}")
    for method in METHODS:
        replay = trained(method, given.iterations, root)
        start = replay.checkpoints[-2]
        replay.trainer.restore(replay.state_at(start))
        for kind in KINDS:
            ranks: dict[str, list[tuple[int, int]]] = {"patch_embed": [], "blocks.2": []}
            for at in range(start, start + given.batches):
                views = planted(replay, kind, at)
                for layer, found in ranks.items():
                    parts = contributions(replay.trainer.method, views, replay.layer(layer).parameters, "rows")
                    scores = (parts.norm, parts.novelty)
                    found.append(tuple(int((s > s[PLACE]).sum()) + 1 for s in scores))  # type: ignore[arg-type]
            for layer, found in ranks.items():
                table = np.array(found)
                part, new = (table == 1).sum(0)
                middle = np.median(table, axis=0)
                n = len(table)
                print(
                    f"{method:8} {kind:11} {layer:12} {part:>8} of {n} {new:>11} of {n} {middle[0]:>6g} {middle[1]:>6g}"
                )


if __name__ == "__main__":
    main()
