"""How often `stablab cause blame` ranks a planted image first: blank, saturated, or wrongly paired.

    python benchmarks/blame.py [--methods mocov3,simclr,byol] [--batches 20] [--seed 0] [--runs-dir DIR]

Trains a small MoCo v3, SimCLR and BYOL on digits, plants one image in each of some batches, and ranks them by outlier
and by part of the last block's gradient. Wrongly paired: its second view shows an image of another class, which is what
a wrong label is without labels. In a batch of 32 chance ranks first one in 32. One minute of one core a method.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stabilitylab.cause.outliers import around, compared, contribution_scores, measure
from stabilitylab.cause.per_image import contributions
from stabilitylab.cause.replay import Replay
from stabilitylab.config import resolve
from stabilitylab.studies.restarting import train_or_resume

KINDS = ("blank", "saturated", "wrongly paired")
LAYER = "blocks.2"
PLACE = 5


def trained(method: str, seed: int, iterations: int, root: Path) -> Replay:
    config = resolve(
        {
            "method": {"name": method},
            "model": {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4},
            "data": {"crop_min": 0.6},
            "optim": {"base_lr": 1.6e-2},
            "train": {"iterations": iterations, "batch_size": 32, "device": "cpu", "checkpoint_every": iterations - 40}
            | {"seed": seed},
            "record": {"log_grads": True},
            "eval": {"knn_every": 0},
        }
    )
    return Replay(train_or_resume(config, root, f"{method}-{seed}"))


class Planted:
    """The batches of a run in which one image of batch ``at`` is changed."""

    def __init__(self, replay: Replay, kind: str, at: int) -> None:
        self.batches, self.kind = replay.trainer.batches, kind
        self.original = type(self.batches).iterate
        order = replay.order(at)
        self.image = int(order[PLACE])
        labels = replay.trainer.data.train.labels
        inside = set(order.tolist())
        others = [i for i in range(len(labels)) if labels[i] != labels[self.image] and i not in inside]
        self.partner = int(np.random.default_rng([7, at]).choice(others))

    def iterate(self, start: int, stop: int, draw: int = 0) -> Iterator[list[Tensor]]:
        for t in range(start, stop):
            (views,) = self._with(None if self.kind == "wrongly paired" else self._odd(), t, draw)
            place = (self.batches.order(t) == self.image).nonzero().flatten()
            if self.kind == "wrongly paired" and len(place):
                (other,) = self._with(self.batches.images[self.partner], t, draw)
                views[1][place] = other[1][place]
            yield views

    def _odd(self) -> Tensor:
        return torch.full_like(self.batches.images[self.image], 0 if self.kind == "blank" else 255)

    def _with(self, pixels: Tensor | None, t: int, draw: int) -> Iterator[list[Tensor]]:
        """Batch ``t`` with other pixels in place of the planted image's."""
        own = self.batches.images[self.image].clone()
        if pixels is not None:
            self.batches.images[self.image] = pixels
        try:
            return iter(list(self.original(self.batches, t, t + 1, draw)))
        finally:
            self.batches.images[self.image] = own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="mocov3,simclr,byol")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs-dir")
    given = parser.parse_args()
    root = Path(given.runs_dir or tempfile.mkdtemp())
    for method in given.methods.split(","):
        replay = trained(method, given.seed, given.iterations, root)
        start = replay.checkpoints[-2]
        replay.trainer.restore(replay.state_at(start))
        plain = cache(partial(measure, replay))
        for kind in KINDS:
            first = {"outlier": 0, "part": 0}
            margins = []
            for at in range(start, start + given.batches):
                planted = Planted(replay, kind, at)

                reference = [plain(t) for t in around(at)]
                replay.trainer.batches.iterate = planted.iterate  # type: ignore[method-assign]
                found = compared(measure(replay, at), reference)
                del replay.trainer.batches.iterate
                (views,) = planted.iterate(at, at + 1)
                parts = contributions(replay.trainer.method, views, replay.layer(LAYER).parameters, "rows")
                score = np.maximum(found.score, contribution_scores(parts.norm.numpy()))
                first["outlier"] += int(score.argmax() == PLACE)
                first["part"] += int(parts.norm.argmax() == PLACE)
                margins.append(found.score[PLACE] / found.ordinary)
            print(
                f"{method:8} seed {given.seed} {kind:15} first by outlier {first['outlier']} of {given.batches}, "
                f"by part {first['part']} of {given.batches}; outlier over the farthest reference image: median "
                f"{np.median(margins):.2f}, smallest {min(margins):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
