"""How unusual each image of a batch is, among the images of neighbouring batches seen from the same state.

An odd image (blank, saturated, one whose two views do not belong together) need not have a large gradient: in a
self-supervised loss the views of a blank image agree at once. What is unusual about it are its features, or the gap
between its two views. Both are averaged over several random draws of views: an unlucky crop of an ordinary image
changes from draw to draw, an odd image does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stabilitylab.cause.replay import Replay
from stabilitylab.errors import ConfigError

NEIGHBOURS = 8
"""Number of batches, the nearest on both sides, that the reference images come from."""
DRAWS = 32
"""Draws of views per image, including the one in the batch."""
FEWEST_OTHERS = 8
"""Fewest reference images."""
SHRINKAGE = 0.05
"""Fraction of the mean variance that is added to the diagonal of a covariance."""

Measured = tuple[np.ndarray, np.ndarray]
"""(mean (N, D), gap (N, D)) of the features of the two views of each image of a batch."""


@dataclass(frozen=True)
class Outliers:
    """Mahalanobis distance (N,) of each image from the reference images, minus the median of their own distances and
    divided by their spread, from the median to the 90th percentile.

    ``features``: distance of the mean features of the two views. ``gap``: distance of their difference. ``score``: the
    larger of the two. ``ordinary``: largest score of the reference images. ``reference``: number of reference images.
    """

    features: np.ndarray
    gap: np.ndarray
    ordinary: float
    reference: int

    @property
    def score(self) -> np.ndarray:
        return np.maximum(self.features, self.gap)


def outliers(replay: Replay, at: int, neighbours: int = NEIGHBOURS, draws: int = DRAWS) -> Outliers:
    """Outliers of batch ``at`` in the trainer's present state. Images of that batch are left out of the reference."""
    own = set(replay.order(at).tolist())
    reference = []
    for t in around(at, neighbours):
        foreign = np.array([i not in own for i in replay.order(t).tolist()])
        features, gap = measure(replay, t, draws)
        reference.append((features[foreign], gap[foreign]))
    others = sum(len(features) for features, _ in reference)
    if others < FEWEST_OTHERS:
        raise ConfigError(
            f"neighbouring batches contain only {others} images that are not in batch {at}, too few to compare with; "
            "use --by part"
        )
    return compared(measure(replay, at, draws), reference)


def around(at: int, neighbours: int = NEIGHBOURS) -> list[int]:
    """The batches nearest to ``at``."""
    first = max(at - neighbours // 2, 0)
    return [t for t in range(first, first + neighbours + 1) if t != at]


def compared(own: Measured, reference: Sequence[Measured]) -> Outliers:
    """Outliers of a batch, given the ``reference`` batches."""
    ordinary = [np.concatenate(parts) for parts in zip(*reference, strict=True)]
    features, gap = (_in_spreads(*cross_distances(r, x)) for r, x in zip(ordinary, own, strict=True))
    return Outliers(features[1], gap[1], float(np.maximum(features[0], gap[0]).max()), len(ordinary[0]))


@torch.no_grad()
def measure(replay: Replay, at: int, draws: int = DRAWS) -> Measured:
    """Features of the images of batch ``at``, averaged over ``draws`` draws of views. The method is left unchanged."""
    method = replay.trainer.method
    buffers = {name: b.clone() for name, b in method.named_buffers()}
    measures = []
    try:
        for draw in range(draws):
            (views,) = replay.trainer.batches.iterate(at, at + 1, draw)
            measures.append(torch.stack(method.encode(views[:2])).double())
    finally:
        for name, b in method.named_buffers():
            b.copy_(buffers[name])
    first, second = torch.stack(measures).mean(0).cpu().numpy()
    return (first + second) / 2, first - second


def contribution_scores(norms: np.ndarray) -> np.ndarray:
    """(N,): the log norms of the images' contributions to a gradient, minus their median and divided by their spread,
    from the median to the 90th percentile of the batch."""
    logs = np.log(np.maximum(norms, 1e-30))
    return _in_spreads(logs, logs)[0]


def cross_distances(reference: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mahalanobis distances of ``reference`` (M, D) and of ``points`` (N, D), all out of sample: each half of the
    reference uses the mean and covariance of the other half, and a point the average over both halves."""
    halves = [reference[::2], reference[1::2]]
    spaces = [_space(half) for half in halves]
    own = np.empty(len(reference))
    own[::2], own[1::2] = _distance(halves[0], spaces[1]), _distance(halves[1], spaces[0])
    return own, (_distance(points, spaces[0]) + _distance(points, spaces[1])) / 2


def _space(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean (D,), whitening (D, D))."""
    mean = points.mean(0)
    covariance = np.atleast_2d(np.cov((points - mean).T))
    covariance += max(SHRINKAGE * np.trace(covariance) / len(covariance), 1e-30) * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    return mean, vectors / np.sqrt(values)


def _distance(points: np.ndarray, space: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    mean, whitening = space
    distance: np.ndarray = np.linalg.norm((points - mean) @ whitening, axis=1)
    return distance


def _in_spreads(reference: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both minus the median of ``reference``, divided by its spread from the median to the 90th percentile."""
    middle, high = np.quantile(reference, [0.5, 0.9])
    spread = max(high - middle, 1e-12)
    return (reference - middle) / spread, (values - middle) / spread
