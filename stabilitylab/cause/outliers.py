"""How unusual each image of a batch is, among the images of neighbouring batches seen from the same state.

An odd image (blank, saturated, one whose two views do not belong together) need not have a large gradient: in a
self-supervised loss the views of a blank image agree at once. What gives it away is where its features lie, and what
its loss is. Both are measured over several random draws of views, so that an unlucky crop of an ordinary image, whose
views happen to be blank, does not count as an odd image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stabilitylab.cause.replay import Replay
from stabilitylab.methods.base import Method

NEIGHBOURS = 8
"""Batches on both sides that ordinary images are taken from."""
DRAWS = 4
"""Draws of views an image: those of the batch itself, and others."""
SHRINKAGE = 0.05
"""Part of the mean variance that is added to the covariance of the features."""


@dataclass(frozen=True)
class Outliers:
    """Of each image (N,), less the reference images' median and in units of their spread (from there to their 90th
    percentile): ``features``, how far its features lie from theirs (Mahalanobis), and ``loss``. ``score``: the larger
    of the two. ``ordinary``: the largest score among the reference images; ``reference``: how many they are."""

    features: np.ndarray
    loss: np.ndarray
    ordinary: float
    reference: int

    @property
    def score(self) -> np.ndarray:
        return np.maximum(self.features, self.loss)


def planned_passes(neighbours: int = NEIGHBOURS, draws: int = DRAWS) -> int:
    """How many times `outliers` measures a batch."""
    return (1 + neighbours) * draws


def outliers(replay: Replay, at: int, neighbours: int = NEIGHBOURS, draws: int = DRAWS) -> Outliers:
    """Of batch ``at``, in the trainer's present state. Images of the batch do not serve as their own reference."""
    own = set(replay.order(at).tolist())
    features, losses = measure(replay, at, draws)
    around = range(max(at - neighbours // 2, 0), max(at - neighbours // 2, 0) + neighbours + 1)
    reference_features, reference_losses = [], []
    for t in around:
        if t == at:
            continue
        foreign = np.array([i not in own for i in replay.order(t).tolist()])
        measured = measure(replay, t, draws)
        reference_features.append(measured[0][foreign])
        reference_losses.append(measured[1][foreign])
    ordinary_features, ordinary_losses = np.concatenate(reference_features), np.concatenate(reference_losses)
    distances = cross_distances(ordinary_features, features)
    found = [_in_spreads(*distances), _in_spreads(ordinary_losses, losses)]
    ordinary = float(np.maximum(found[0][0], found[1][0]).max())
    return Outliers(found[0][1], found[1][1], ordinary, len(ordinary_losses))


@torch.no_grad()
def measure(replay: Replay, at: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """(features (N, V D) of all views, loss (N,)) of the images of batch ``at``, the mean over ``draws`` draws of
    views. The method is left as it is."""
    method = replay.trainer.method
    buffers = {name: b.clone() for name, b in method.named_buffers()}
    features, losses = [], []
    try:
        for draw in range(draws):
            (views,) = replay.trainer.batches.iterate(at, at + 1, draw)
            encoded = method.encode(views)
            momentum = method.encode_momentum(views) if method.uses_momentum_encoder else None
            features.append(torch.cat([f.double() for f in encoded], 1))
            losses.append(image_losses(method, encoded, momentum, at))
    finally:
        for name, b in method.named_buffers():
            b.copy_(buffers[name])
    return torch.stack(features).mean(0).cpu().numpy(), torch.stack(losses).mean(0).cpu().numpy()


def image_losses(
    method: Method, features: Sequence[Tensor], momentum: Sequence[Tensor] | None, iteration: int
) -> Tensor:
    """(N,) the loss of each image: N times the batch's loss less N - 1 times that of the batch without the image, its
    negatives and statistics of the heads included. Exact where the loss is a mean over images."""

    def loss(kept: Tensor) -> Tensor:
        rest = None if momentum is None else [m[kept] for m in momentum]
        return method.loss([f[kept] for f in features], rest, iteration).double()

    count = len(features[0])
    everything = torch.arange(count, device=features[0].device)
    whole = loss(everything)
    return torch.stack([count * whole - (count - 1) * loss(everything[everything != i]) for i in range(count)])


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
