"""The weighted kNN monitor (PAPER, Implementation)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabilitylab.config import Config
from stabilitylab.data.batches import evaluation_images
from stabilitylab.data.datasets import ImageData, Split

_EVAL_BATCH = 512


def knn_predict(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, *, k: int, temperature: float, num_classes: int
) -> Tensor:
    """Classes (Q,) by weighted vote of the ``k`` most cosine-similar rows of ``bank`` (B, D); weight exp(s / T)."""
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    predictions = []
    for chunk in queries.split(1024):
        similarity, nearest = (chunk @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = chunk.new_zeros(len(chunk), num_classes)
        votes.scatter_add_(1, bank_labels[nearest], (similarity / temperature).exp())
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


class KnnMonitor:
    """kNN top-1 of the base encoder's features: training images as the bank, held-out images as queries."""

    def __init__(self, config: Config, data: ImageData, device: torch.device) -> None:
        self.data, self.device, self.config = data, device, config.eval
        self.size = config.model.img_size
        self.bank_labels = data.train.labels.to(device)
        self.labels = data.test.labels.to(device)
        # A small set's resized images stay on the device: they are the same at every evaluation.
        self._cache: dict[int, list[Tensor]] = {}

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    @torch.inference_mode()
    def __call__(self, encoder: nn.Module) -> Tensor:
        """The fraction of held-out images classified rightly, a 0-d tensor on the device."""
        was_training = encoder.training
        encoder.eval()
        bank, queries = self.features(encoder, self.data.train), self.features(encoder, self.data.test)
        encoder.train(was_training)
        predicted = knn_predict(
            bank,
            self.bank_labels,
            queries,
            k=self.config.knn_k,
            temperature=self.config.knn_temperature,
            num_classes=self.data.num_classes,
        )
        return (predicted == self.labels).float().mean()

    def features(self, encoder: nn.Module, split: Split) -> Tensor:
        """Features (N, D) of a split, unaugmented, as the encoder's mode has it."""
        return torch.cat([encoder(images).float() for images in self._images(split)])

    def _images(self, split: Split) -> list[Tensor]:
        batches = self._cache.get(id(split))
        if batches is None:
            batches = list(evaluation_images(self.data, split, self.size, self.device, _EVAL_BATCH))
            if split.images is not None:
                self._cache[id(split)] = batches
        return batches
