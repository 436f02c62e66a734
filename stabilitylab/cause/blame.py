"""Rank the images of a batch by how unusual they are or by their contribution to a layer's gradient, draw them, and
list them for `stablab train --skip-list`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from stabilitylab.cause.outliers import DRAWS, NEIGHBOURS, contribution_scores, measure, outliers
from stabilitylab.cause.per_image import CHUNK, contributions, default_way
from stabilitylab.cause.replay import Replay, ReplayCheck
from stabilitylab.cause.spike import find_spike
from stabilitylab.data.datasets import kept_images

BY = ("outlier", "part", "novelty")


@dataclass(frozen=True)
class BlamedImage:
    """``index``: index in the training set, as in ``data.skip``. ``place``: index in the batch. ``norm``, ``share``,
    ``novelty``: see `per_image.Contributions`. ``outlier`` is the largest of ``features`` and ``gap``, the scores of
    `outliers.Outliers`, and ``contribution``, `outliers.contribution_scores`; None unless ranked by outlier."""

    index: int
    place: int
    norm: float
    share: float
    novelty: float
    outlier: float | None = None
    features: float | None = None
    gap: float | None = None
    contribution: float | None = None


@dataclass(frozen=True)
class Blame:
    """The ``top`` images of batch ``iteration``, the most suspicious first.

    ``by``: ranked by ``outlier``; by ``part``, the norm of the contribution to the gradient of ``layer``; or by its
    ``novelty``. ``typical``: the median of that over the batch; by ``outlier``, the largest score of ordinary images:
    the ``reference`` images from neighbouring batches or, for the contribution, the other images of the batch.
    ``pictures`` (top, views, C, H, W): the images, in [0, 1].
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
    reference: int = 0

    @property
    def ratio(self) -> float:
        """The score of the first image divided by the typical one."""
        first = self.images[0]
        largest = {"outlier": first.outlier, "part": first.norm, "novelty": first.novelty}[self.by]
        assert largest is not None
        return largest / self.typical if self.typical else float("inf")

    @property
    def stands_out(self) -> bool:
        """Whether the first image is out of the ordinary."""
        return self.ratio >= OUTSTANDING[self.by]

    def sentence(self) -> str:
        """The result as text."""
        first = self.images[0]
        text = f"Of the {self.batch_size} images of batch {self.iteration}, image {first.index} "
        gradient = f"{self.layer}'s gradient ({self.how})"
        if self.by == "outlier" and first.outlier is not None:
            what = {
                first.features: "its features are",
                first.gap: "the gap between its views is",
                first.contribution: f"its contribution to {self.layer}'s gradient is",
            }[first.outlier]
            others = f"{self.reference} images of neighbouring batches"
            if first.contribution == first.outlier:
                others = "the others"
            text += (
                f"is the most unusual: {what} {first.outlier:.1f} spreads from the median of {others} (the most "
                f"unusual of them: {self.typical:.1f}). "
                f"Its contribution is {first.norm:.0%} of the norm of {gradient}, share {first.share:+.0%}"
            )
        else:
            largest = "contributes most to" if self.by == "part" else "has the highest novelty in"
            text += f"{largest} {gradient}: {self.ratio:.1f} times the median, share {first.share:+.0%}"
        return text + ("." if self.stands_out else "; no image stands out.")

    def skip_list(self) -> str:
        """The images, one per line, for `stablab train --skip-list FILE`."""
        lines = [f"# {self.layer}, iteration {self.iteration}, {self.how}, by {self.by}: part, share, novelty, outlier"]
        if not self.stands_out:
            lines.append("# No image stands out: there is no reason to leave these out.")
        for x in self.images:
            outlier = "" if x.outlier is None else f", {x.outlier:.2f}"
            lines.append(f"{x.index}  # {x.norm:.3f}, {x.share:+.3f}, {x.novelty:.3f}{outlier}")
        return "\n".join(lines) + "\n"


OUTSTANDING = {"outlier": 1.5, "part": 3.0, "novelty": 3.0}
"""An image stands out if its score is this many times the typical one."""


def blame_run(
    run_dir: Path | Replay,
    *,
    at: int,
    layer: str | None = None,
    how: str | None = None,
    by: str = "outlier",
    top: int = 8,
) -> Blame:
    """Rank the images of the batch of iteration ``at``.

    ``by``: ``outlier``, see `outliers`; or the contribution to the gradient of ``layer``: ``part`` (its norm) or
    ``novelty``. ``layer``: by default the one that leads the spike there. ``how``: ``rows`` or ``leave-one-out``, see
    `per_image`.

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
    norms, novelties = parts.norm.cpu().numpy(), parts.novelty.cpu().numpy()
    odd = outliers(replay, at) if by == "outlier" else None
    contribution = contribution_scores(norms)
    score = np.maximum(odd.score, contribution) if odd is not None else norms if by == "part" else novelties
    ranked = np.argsort(-score, kind="stable").tolist()[:top]
    typical = float(np.median(score))
    if odd is not None:
        unusual = score[ranked[0]] == odd.score[ranked[0]]
        typical = odd.ordinary if unusual else float(np.delete(contribution, ranked[0]).max(initial=0.0))

    def blamed(i: int) -> BlamedImage:
        seen = (
            () if odd is None else (float(score[i]), float(odd.features[i]), float(odd.gap[i]), float(contribution[i]))
        )
        return BlamedImage(
            int(indices[i]), i, float(parts.norm[i]), float(parts.share[i]), float(parts.novelty[i]), *seen
        )

    pictures = np.stack([[_picture(replay, view[i]) for view in views[:2]] for i in ranked])
    return Blame(
        iteration=at,
        layer=name,
        how=chosen,
        by=by,
        images=tuple(map(blamed, ranked)),
        typical=typical,
        batch_size=len(indices),
        pictures=pictures,
        check=check,
        reference=0 if odd is None else odd.reference,
    )


def seconds_to_blame(replay: Replay, at: int, layer: str | None, how: str | None, by: str) -> float:
    """Duration of `blame_run` without its replay check, estimated from a few images and draws."""
    trainer = replay.trainer
    trainer.restore(replay.state_at(at))
    (views,) = replay.views(at, 1)
    count = len(views[0])
    parameters = (replay.layer(layer or find_spike(replay, at).layer)).parameters
    chosen = how or default_way(trainer.method, parameters)
    few = min(CHUNK, count)
    times = []
    for images in (min(4, few), few):  # the first call warms up
        began = time.perf_counter()
        contributions(trainer.method, [view[:images] for view in views], parameters, chosen, at)
        times.append(time.perf_counter() - began)
    # Leave-one-out made `few` passes over `few` images; the experiment makes `count` passes over `count` images.
    seconds = times[-1] * count / few * (count / few if chosen == "leave-one-out" else 1)
    if by == "outlier":
        measure(replay, at, 2)  # the first call warms up
        began = time.perf_counter()
        measure(replay, at, 4)
        seconds += (time.perf_counter() - began) / 4 * DRAWS * (1 + NEIGHBOURS)
    return seconds


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
    """The images in order, a column each, a row a view; above each its index, its part, and what it is ranked by."""
    titles = []
    for image in blame.images:
        value = f"novelty {image.novelty:.2f}" if image.outlier is None else f"outlier {image.outlier:.1f}"
        titles.append(f"{image.index}\npart {image.norm:.0%}\n{value}")
    _draw(blame.pictures, titles, path)


def seconds_to_draw(replay: Replay, at: int, top: int) -> float:
    """Duration of drawing a contact sheet of ``top`` images of batch ``at``."""
    (views,) = replay.views(at, 1)
    pictures = np.stack([_picture(replay, view[:top]) for view in views[:2]], 1)
    began = time.perf_counter()
    _draw(pictures, ["0\npart 0%\noutlier 0.0"] * len(pictures), BytesIO())
    return time.perf_counter() - began


def _draw(pictures: np.ndarray, titles: Sequence[str], file: Path | BytesIO) -> None:
    """``pictures``: (images, views, C, H, W)."""
    count, rows = pictures.shape[:2]
    figure = Figure(figsize=(max(1.1 * count, 3), 1.15 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, count, squeeze=False)
    for column, title in enumerate(titles):
        for row in range(rows):
            axes = grid[row, column]
            axes.set_axis_off()
            pixels = pictures[column, row].transpose(1, 2, 0)
            axes.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        grid[0, column].set_title(title, fontsize=7)
    figure.savefig(file, dpi=110, format="png")
