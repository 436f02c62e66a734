"""The weighted kNN monitor and feature statistics that reveal collapse."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabilitylab.config import Config
from stabilitylab.data.batches import Normalize, decoded, evaluation_images, stream
from stabilitylab.data.datasets import ImageData, Split
from stabilitylab.data.views import Draws, augment, views_of
from stabilitylab.errors import ConfigError
from stabilitylab.models.collectives import gather, sum_over_processes
from stabilitylab.recording.features import feature_statistics

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]

_EVAL_BATCH = 512
_CACHE_BYTES = 4 << 30
_PAIRS = 128
_VIEWS_SEED = 2005_10242
"""Number and seed of the positive pairs for the alignment, the same in every run. They use a separate random stream, so
that measuring does not affect training."""


def knn_predict(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, k: int, temperature: float, num_classes: int
) -> Tensor:
    """Predict classes (Q,) of ``queries`` (Q, D) by a weighted vote of the ``k`` rows of ``bank`` (B, D) with the
    highest cosine similarity s; the weight is exp(s / T)."""
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    predictions = []
    for chunk in queries.split(1024):
        similarity, nearest = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = chunk.new_zeros(len(chunk), num_classes)
        weight = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest, to avoid overflow
        votes.scatter_add_(1, bank_labels[nearest], weight)
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


class KnnMonitor:
    """kNN top-1 of the base encoder's features: training images are the bank, held-out images the queries. Both can be
    restricted to random subsets (``eval.knn_bank``, ``eval.knn_queries``), which are the same for every run.

    Each process decodes its share of both once and computes its features. The features of the bank are gathered, and
    each process classifies its own queries. All processes must call the monitor together and get the same result.
    ``autocast``: that of the training. Raises ConfigError if there are fewer images than processes.
    """

    def __init__(
        self,
        config: Config,
        data: ImageData,
        device: torch.device,
        share: tuple[int, int] = (0, 1),
        autocast: Autocast = contextlib.nullcontext,
    ) -> None:
        self.data, self.device, self.config, self.autocast = data, device, config.eval, autocast
        self.size, self.global_views = config.model.img_size, views_of(config)[:2]
        self.bank = part_of(data.train, config.eval.knn_bank)
        self.queries = part_of(data.test, config.eval.knn_queries)
        rank, size = share
        if size > min(len(self.bank), len(self.queries)):
            raise ConfigError(
                f"the kNN monitor has {len(self.bank)} images in its bank and {len(self.queries)} queries, fewer than "
                f"the {size} processes; raise eval.knn_bank and eval.knn_queries, or use fewer processes"
            )
        # In the order in which rows are gathered from the processes.
        self.bank_labels = torch.cat([self.bank.labels[r::size] for r in range(size)]).to(device)
        self.labels = self.queries.labels[rank::size].to(device)
        self._bank_share, self._query_share = _strided(self.bank, rank, size), _strided(self.queries, rank, size)
        self._bank_rows = [len(self.bank.labels[r::size]) for r in range(size)]
        self._query_rows = [len(self.queries.labels[r::size]) for r in range(size)]
        # Every evaluation uses the same images: a small set is kept resized on the device, files are kept decoded.
        self._cache: dict[int, list[Tensor]] = {}
        self._decoded: dict[int, Split] = {}
        self._queried: Tensor | None = None
        self._pairs: list[Tensor] | None = None

    @property
    def num_samples(self) -> int:
        return len(self.queries)

    @torch.inference_mode()
    def __call__(self, encoder: nn.Module) -> Tensor:
        """The fraction of held-out images classified correctly, a 0-d tensor on the device."""
        was_training = encoder.training
        encoder.eval()
        bank = gather_uneven(self._features(encoder, self._bank_share), self._bank_rows)
        queries = self._features(encoder, self._query_share)
        encoder.train(was_training)
        self._queried = gather_uneven(queries, self._query_rows)
        predicted = knn_predict(
            bank,
            self.bank_labels,
            queries,
            k=self.config.knn_k,
            temperature=self.config.knn_temperature,
            num_classes=self.data.num_classes,
        )
        if len(self._query_rows) == 1:
            return (predicted == self.labels).float().mean()
        return sum_over_processes((predicted == self.labels).float().sum()) / self.num_samples

    @torch.inference_mode()
    def statistics(self, encoder: nn.Module) -> dict[str, float]:
        """`feature_statistics` of the query features of the last evaluation, and the alignment between two views of
        some training images."""
        if self._queried is None or len(self._queried) < 2:
            return {}
        measured = feature_statistics(self._queried)
        was_training = encoder.training
        encoder.eval()
        with self.autocast():
            one, other = (encoder(view).float() for view in self._views())
        encoder.train(was_training)
        if len(one) > 1:
            measured["feature_alignment"] = feature_statistics(one, other)["feature_alignment"]
        return measured

    def _views(self) -> list[Tensor]:
        """Two augmented views of some training images, cached."""
        if self._pairs is None:
            part = decoded(part_of(self.data.train, _PAIRS), self.size)
            assert part.images is not None
            images = part.images.to(self.device).float() / 255
            draws, normalize = Draws(stream(_VIEWS_SEED)), Normalize(self.data, self.device)
            self._pairs = [normalize(augment(images, view, self.size, draws)) for view in self.global_views]
        return self._pairs

    def _features(self, encoder: nn.Module, split: Split) -> Tensor:
        with self.autocast():
            return torch.cat([encoder(images).float() for images in self._images(split)])

    def _images(self, split: Split) -> Iterable[Tensor]:
        known = self._cache.get(id(split))
        if known is not None:
            return known
        values = len(split) * self.data.channels * self.size**2
        if split.images is None and values <= _CACHE_BYTES:
            decode = self._decoded.get(id(split)) or self._decoded.setdefault(id(split), decoded(split, self.size))
            return evaluation_images(self.data, decode, self.size, self.device, _EVAL_BATCH)
        batches = evaluation_images(self.data, split, self.size, self.device, _EVAL_BATCH)
        return batches if values * 4 > _CACHE_BYTES else self._cache.setdefault(id(split), list(batches))


def _strided(split: Split, rank: int, size: int) -> Split:
    """Every ``size``-th image, starting at ``rank``."""
    return split if size == 1 else split.subset(torch.arange(rank, len(split), size))


def gather_uneven(x: Tensor, rows: list[int]) -> Tensor:
    """Gather rows from all processes: process i has ``rows[i]`` rows. Returns (sum(rows), ...)."""
    if len(rows) == 1:
        return x
    most = max(rows)
    padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
    parts = gather(padded).split(most)
    return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])


def part_of(split: Split, count: int | None) -> Split:
    """A random subset of ``count`` images, the same for every run; the whole split if it is not larger."""
    if count is None or count >= len(split):
        return split
    chosen = np.random.default_rng(0).permutation(len(split))[:count]
    return split.subset(torch.from_numpy(chosen).sort().values)


@torch.inference_mode()
def features_of(encoder: nn.Module, data: ImageData, split: Split, size: int, device: torch.device) -> Tensor:
    """Features (N, D) of a split without augmentation, in the encoder's current mode."""
    return torch.cat([encoder(x).float() for x in evaluation_images(data, split, size, device, _EVAL_BATCH)])
