"""Rank the images of a batch by their contribution to a layer's gradient, draw them, and list them for `stablab train
--skip-list`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from stabilitylab.cause.per_image import contributions, default_way
from stabilitylab.cause.replay import Replay, ReplayCheck
from stabilitylab.cause.spike import find_spike
from stabilitylab.data.datasets import kept_images


@dataclass(frozen=True)
class BlamedImage:
    """``index``: index in the training set, as in ``data.skip``. ``place``: index in the batch. ``norm``, ``share``,
    ``novelty``: see `per_image.Contributions`."""

    index: int
    place: int
    norm: float
    share: float
    novelty: float


@dataclass(frozen=True)
class Blame:
    """The ``top`` images of batch ``iteration``, largest first.

    ``by``: ranked by ``part``, the norm of the contribution to the gradient of ``layer``, or by its ``novelty``.
    ``typical``: median of that over the batch. ``pictures`` (top, views, C, H, W): the images, in [0, 1].
    """

    iteration: int
    layer: str
    how: str
    by: str
    images: tuple[BlamedImage, ...]
    typical: float
    batch_size: int
    pictures: np.ndarray
    check: ReplayCheck

    @property
    def ratio(self) -> float:
        """The largest contribution (or novelty) divided by the typical one."""
        largest = self.images[0].norm if self.by == "part" else self.images[0].novelty
        return largest / self.typical if self.typical else float("inf")

    @property
    def stands_out(self) -> bool:
        """Whether the first image is an outlier."""
        return self.ratio >= OUTSTANDING

    def sentence(self) -> str:
        """The result as text."""
        first = self.images[0]
        largest = "contributes most to" if self.by == "part" else "has the highest novelty in"
        text = f"Of the {self.batch_size} images of batch {self.iteration}, image {first.index} {largest} "
        text += f"{self.layer}'s gradient ({self.how}): {self.ratio:.1f} times the median, share {first.share:+.0%}"
        return text + ("." if self.stands_out else "; no image stands out.")

    def skip_list(self) -> str:
        """The images, one per line, for `stablab train --skip-list FILE`."""
        lines = [f"# {self.layer}, iteration {self.iteration}, {self.how}, by {self.by}: part, share, novelty"]
        lines += [f"{x.index}  # {x.norm:.3f}, {x.share:+.3f}, {x.novelty:.3f}" for x in self.images]
        return "\n".join(lines) + "\n"


OUTSTANDING = 3.0
"""An image is an outlier if its contribution is this many times the median of the batch."""


def blame_run(
    run_dir: Path | Replay,
    *,
    at: int,
    layer: str | None = None,
    how: str | None = None,
    by: str = "part",
    top: int = 8,
) -> Blame:
    """Rank the images of the batch of iteration ``at`` by their contribution to the gradient of ``layer``.

    ``layer``: by default the one that leads the spike there. ``by``: ``part`` (the norm) or ``novelty``. ``how``:
    ``rows`` or ``leave-one-out``, see `per_image`.

    Raises:
        ConfigError: the run cannot be replayed, or ``how`` does not apply to the layer.
    """
    replay = run_dir if isinstance(run_dir, Replay) else Replay(run_dir)
    replay.require([at])
    check = replay.check(at)
    name = layer or find_spike(replay, at).layer
    parameters = replay.layer(name).parameters
    trainer = replay.trainer
    trainer.restore(replay.state_at(at))
    trainer.before_gradient(at)
    (views,) = replay.views(at, 1)
    chosen = how or default_way(trainer.method, parameters)
    parts = contributions(trainer.method, views, parameters, chosen, at)
    indices = _indices(replay, at)
    score = parts.norm if by == "part" else parts.novelty
    ranked = score.argsort(descending=True).tolist()[:top]
    images = tuple(
        BlamedImage(int(indices[i]), i, float(parts.norm[i]), float(parts.share[i]), float(parts.novelty[i]))
        for i in ranked
    )
    pictures = np.stack([[_picture(replay, view[i]) for view in views[:2]] for i in ranked])
    return Blame(at, name, chosen, by, images, float(score.median()), len(indices), pictures, check)


def _indices(replay: Replay, at: int) -> Tensor:
    """Indices (N,) of the images of a batch in the full training set, including those that ``data.skip`` excludes."""
    config, inside = replay.trainer.config.data, replay.order(at)
    if not config.skip:
        return inside
    return kept_images(config, len(replay.trainer.data.train) + len(config.skip))[inside]


def _picture(replay: Replay, view: Tensor) -> np.ndarray:
    data = replay.trainer.data
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (data.mean, data.std))
    return (view.cpu() * std + mean).clamp(0, 1).numpy()


def draw_contact_sheet(blame: Blame, path: Path) -> None:
    """Draw the images in order, one column each, one row per view. Titles: index, contribution and novelty."""
    count, rows = blame.pictures.shape[:2]
    figure = Figure(figsize=(max(1.1 * count, 3), 1.15 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, count, squeeze=False)
    for column, image in enumerate(blame.images):
        for row in range(rows):
            axes = grid[row, column]
            axes.set_axis_off()
            pixels = blame.pictures[column, row].transpose(1, 2, 0)
            axes.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        grid[0, column].set_title(f"{image.index}\n{image.norm:.0%}, {image.novelty:.2f}", fontsize=7)
    figure.savefig(path, dpi=110)
