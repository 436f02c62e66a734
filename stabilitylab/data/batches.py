"""Batches of augmented views. The contents of batch ``iteration`` depend only on (seed, iteration).

A resumed run therefore sees exactly the same data, and runs that share a seed share their data order and can be paired.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stabilitylab.config import Config
from stabilitylab.data.datasets import ImageData, Split
from stabilitylab.data.photos import centre_crop, views_of_file
from stabilitylab.data.views import Draws, View, augment, moved, views_of
from stabilitylab.errors import ConfigError

Share = tuple[int, int]
_ORDER, _AUGMENT = 0, 1  # the random streams


def stream(seed: int, *key: int) -> torch.Generator:
    """An independent generator for each (seed, key)."""
    state = np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class BatchOrder:
    """The image indices of each batch: a new permutation every epoch; the incomplete last batch is dropped."""

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        if batch_size > num_images:
            raise ConfigError(f"batch_size {batch_size} is larger than the data set ({num_images} images)")
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.iterations_per_epoch = num_images // batch_size
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, iteration: int) -> Tensor:
        """Indices (batch_size,) of batch ``iteration``."""
        epoch, position = divmod(iteration, self.iterations_per_epoch)
        if epoch != self._epoch:
            generator = stream(self.seed, _ORDER, epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self.num_images, generator=generator)
        start = position * self.batch_size
        return self._permutation[start : start + self.batch_size]


def _augmentation(iteration: int, draw: int) -> tuple[int, ...]:
    """The key of the random stream of a batch's augmentation."""
    return (_AUGMENT, iteration, draw) if draw else (_AUGMENT, iteration)


class MemoryBatches:
    """Views of images held in memory, augmented as a batch on ``device``."""

    def set_views(self, views: tuple[View, ...]) -> None:
        """Replace the views that the configuration specifies."""
        self.views = views

    def __init__(self, config: Config, data: ImageData, device: torch.device, share: Share = (0, 1)) -> None:
        assert data.train.images is not None
        self.order = BatchOrder(len(data.train), config.train.batch_size, config.train.seed)
        self.views, self.share = views_of(config), share
        self.size, self.seed = config.model.img_size, config.train.seed
        self.images = data.train.images.to(device)
        self.normalize = Normalize(data, device)

    def iterate(self, start: int, stop: int, draw: int = 0) -> Iterator[list[Tensor]]:
        """The views of batches ``start`` to ``stop`` - 1: a list of (N, C, size, size) tensors. ``draw`` 0
        gives the views used in training, other values give other random views of the same images."""
        for iteration in range(start, stop):
            batch = self.order(iteration)
            rows = batch.chunk(self.share[1])[self.share[0]]
            images = self.images[moved(rows, self.images.device)].float() / 255
            draws = Draws(stream(self.seed, *_augmentation(iteration, draw)), len(batch), self.share[0] * len(rows))
            yield [self.normalize(augment(images, view, view.size or self.size, draws)) for view in self.views]


class Normalize:
    """Subtract the data set's mean, divide by its std, per channel."""

    def __init__(self, data: ImageData, device: torch.device) -> None:
        self.mean = torch.tensor(data.mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(data.std, device=device).view(-1, 1, 1)

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


CHUNK = 64
"""Images per worker item. A fixed chunk keeps shared memory use independent of the batch size."""


class _FolderViews(torch.utils.data.Dataset[list[Tensor] | ConfigError]):
    """The views of one image, each (size, size, 3) uint8. An item is (iteration, index); the augmentation depends on
    these two only, not on the worker."""

    def __init__(self, split: Split, views: tuple[View, ...], size: int, seed: int) -> None:
        assert split.paths is not None
        self.paths, self.views, self.size, self.seed = split.paths, views, size, seed
        self.draw = 0

    def __getitem__(self, item: Any) -> list[Tensor] | ConfigError:
        iteration, index = item
        rng = np.random.default_rng([self.seed, *_augmentation(iteration, self.draw), index])
        try:
            return views_of_file(self.paths[index], self.views, self.size, rng)
        except ConfigError as error:  # returned, because the DataLoader would wrap a raised error in a traceback
            return error


def _collate(items: list[list[Tensor] | ConfigError]) -> list[Tensor] | ConfigError:
    views = [item for item in items if not isinstance(item, ConfigError)]
    if len(views) < len(items):
        return next(item for item in items if isinstance(item, ConfigError))
    return [torch.stack(parts) for parts in zip(*views, strict=True)]


def _start_worker(_: int) -> None:
    """Reset the signal handlers inherited from the trainer, which only set a flag, so that SIGTERM ends a worker."""
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL if name == "SIGTERM" else signal.SIG_IGN)


class FolderBatches:
    """Views of images on disk, decoded and augmented in ``workers`` processes and sent to the device as uint8."""

    def set_views(self, views: tuple[View, ...]) -> None:
        """Replace the views that the configuration specifies."""
        self.dataset.views = views

    def __init__(self, config: Config, data: ImageData, device: torch.device, share: Share = (0, 1)) -> None:
        self.order = BatchOrder(len(data.train), config.train.batch_size, config.train.seed)
        views = views_of(config)
        self.share = share
        self.dataset = _FolderViews(data.train, views, config.model.img_size, config.train.seed)
        self.workers, self.device = config.data.workers, device
        self.normalize = Normalize(data, device)

    def iterate(self, start: int, stop: int, draw: int = 0) -> Iterator[list[Tensor]]:
        """The views of batches ``start`` to ``stop`` - 1: a list of (N, C, size, size) tensors. ``draw`` 0
        gives the views used in training, other values give other random views of the same images."""
        dataset = copy.copy(self.dataset)
        dataset.draw = draw
        rank, size = self.share
        rows = self.order.batch_size // size
        chunks = -(-rows // CHUNK)
        plan = (
            [(t, i) for i in part.tolist()]
            for t in range(start, stop)
            for part in self.order(t).chunk(size)[rank].split(CHUNK)
        )
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_sampler=plan,
            collate_fn=_collate,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_start_worker,
        )
        held: list[list[Tensor]] = []
        for views in loader:
            if isinstance(views, ConfigError):
                raise views
            held.append([view.to(self.device, non_blocking=True) for view in views])
            if len(held) == chunks:
                yield [self._on_device(parts) for parts in zip(*held, strict=True)]
                held = []

    def _on_device(self, parts: Sequence[Tensor]) -> Tensor:
        """Chunks (n, size, size, 3) uint8 -> normalised (N, 3, size, size), channels last in memory."""
        return self.normalize(torch.cat(list(parts)).permute(0, 3, 1, 2).float() / 255)


def training_batches(
    config: Config, data: ImageData, device: torch.device, share: Share = (0, 1)
) -> MemoryBatches | FolderBatches:
    """The training batches of a run. ``share`` is (rank, number of processes): only that process's rows are loaded.

    Raises ConfigError if the batch size is not a multiple of the number of processes."""
    if config.train.batch_size % share[1]:
        raise ConfigError(f"batch_size {config.train.batch_size} cannot be divided evenly among {share[1]} processes")
    kind = FolderBatches if data.train.images is None else MemoryBatches
    return kind(config, data, device, share)


def evaluation_images(data: ImageData, split: Split, size: int, device: torch.device, batch: int) -> Iterator[Tensor]:
    """Yield a split in order, ``batch`` images at a time, resized and normalised without augmentation."""
    normalize = Normalize(data, device)
    for some in torch.arange(len(split)).split(batch):
        part = decoded(split.subset(some), size)
        assert part.images is not None
        images = part.images.to(device).float() / 255
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
        yield normalize(images)


def decoded(split: Split, size: int) -> Split:
    """Decode a split of files into memory, (N, 3, size, size) uint8: resize the shorter side, then centre crop. A split
    already in memory is returned unchanged. Pillow releases the GIL while it decodes, so threads help."""
    if split.images is not None or split.paths is None:
        return split
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(partial(centre_crop, size=size), split.paths))
    return replace(split, images=torch.stack(images), paths=None)
