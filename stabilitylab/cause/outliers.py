"""How unusual each image of a batch is, among the images of neighbouring batches seen from the same state.

An odd image (blank, saturated, one whose two views do not belong together) need not have a large gradient: in a
self-supervised loss the views of a blank image agree at once. What gives it away is where its features lie, and how far
its two views lie apart. Both are means over several random draws of views: an unlucky crop of an ordinary image differs
from draw to draw, an odd image does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stabilitylab.cause.replay import Replay

NEIGHBOURS = 8
"""Batches that ordinary images are taken from, the nearest on both sides."""
DRAWS = 32
"""Draws of views an image: those of the batch itself, and others."""
SHRINKAGE = 0.05
"""Part of the mean variance that is added to the covariance of the features."""

Measured = tuple[np.ndarray, np.ndarray]
"""(place (N, D), gap (N, D)) of the images of a batch: mean and difference of the features of their two views."""


@dataclass(frozen=True)
class Outliers:
    """Of each image (N,), the distance (Mahalanobis) from the reference images, less the median of their own distances
    and in units of their spread, from the median to the 90th percentile: ``place``, of its features; ``gap``, of the
    difference between its two views. ``score``: the larger of the two. ``ordinary``: the largest score among the
    reference images; ``reference``: how many they are."""

    place: np.ndarray
    gap: np.ndarray
    ordinary: float
    reference: int

    @property
    def score(self) -> np.ndarray:
        return np.maximum(self.place, self.gap)


def outliers(replay: Replay, at: int, neighbours: int = NEIGHBOURS, draws: int = DRAWS) -> Outliers:
    """Of batch ``at``, in the trainer's present state. Images of the batch do not serve as their own reference."""
    own = set(replay.order(at).tolist())
    reference = []
    for t in around(at, neighbours):
        foreign = np.array([i not in own for i in replay.order(t).tolist()])
        place, gap = measure(replay, t, draws)
        reference.append((place[foreign], gap[foreign]))
    return compared(measure(replay, at, draws), reference)


def around(at: int, neighbours: int = NEIGHBOURS) -> list[int]:
    """The batches nearest to ``at``."""
    first = max(at - neighbours // 2, 0)
    return [t for t in range(first, first + neighbours + 1) if t != at]


def compared(own: Measured, reference: Sequence[Measured]) -> Outliers:
    """The images of a batch among those of ``reference``, other batches."""
    ordinary = [np.concatenate(parts) for parts in zip(*reference, strict=True)]
    place, gap = (_in_spreads(*cross_distances(r, x)) for r, x in zip(ordinary, own, strict=True))
    return Outliers(place[1], gap[1], float(np.maximum(place[0], gap[0]).max()), len(ordinary[0]))


@torch.no_grad()
def measure(replay: Replay, at: int, draws: int = DRAWS) -> Measured:
    """Of the images of batch ``at``, over ``draws`` draws of views. The method is left as it is."""
    method = replay.trainer.method
    buffers = {name: b.clone() for name, b in method.named_buffers()}
    found = []
    try:
        for draw in range(draws):
            (views,) = replay.trainer.batches.iterate(at, at + 1, draw)
            found.append(torch.stack(method.encode(views[:2])).double())
    finally:
        for name, b in method.named_buffers():
            b.copy_(buffers[name])
    first, second = torch.stack(found).mean(0).cpu().numpy()
    return (first + second) / 2, first - second


def cross_distances(reference: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mahalanobis distances of ``reference`` (M, D) and of ``points`` (N, D). Each half of the reference is measured by
    the other half's mean and covariance, and a point by both, so that all are out of sample."""
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
    found: np.ndarray = np.linalg.norm((points - mean) @ whitening, axis=1)
    return found


def _in_spreads(reference: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both less the reference's median, over its distance to the 90th percentile."""
    middle, high = np.quantile(reference, [0.5, 0.9])
    spread = max(high - middle, 1e-12)
    return (reference - middle) / spread, (values - middle) / spread
