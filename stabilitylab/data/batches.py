"""Batches of views. What batch ``iteration`` holds depends on (seed, iteration) and nothing else.

That makes a resumed run exact, and runs that share a seed share their data order, so they can be paired.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stabilitylab.config import Config
from stabilitylab.data.datasets import ImageData, Split, read_image
from stabilitylab.data.views import Draws, View, augment, moved, views_of
from stabilitylab.errors import ConfigError

Share = tuple[int, int]
_ORDER, _AUGMENT = 0, 1  # the random streams


def stream(seed: int, *key: int) -> torch.Generator:
    """An independent generator for each (seed, key)."""
    state = np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class BatchOrder:
    """Which images stand in batch ``iteration``: a fresh permutation each epoch, its incomplete last batch dropped."""

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


class MemoryBatches:
    """Views of images held in memory, augmented as a batch on ``device``."""

    def set_views(self, views: tuple[View, ...]) -> None:
        """Other views than the configuration's."""
        self.views = views

    def __init__(self, config: Config, data: ImageData, device: torch.device, share: Share = (0, 1)) -> None:
        assert data.train.images is not None
        self.order = BatchOrder(len(data.train), config.train.batch_size, config.train.seed)
        self.views, self.share = views_of(config), share
        self.size, self.seed = config.model.img_size, config.train.seed
        self.images = data.train.images.to(device)
        self.normalize = Normalize(data, device)

    def iterate(self, start: int, stop: int) -> Iterator[list[Tensor]]:
        """The views of batches ``start`` to ``stop`` - 1: a list of (N, C, size, size) tensors."""
        for iteration in range(start, stop):
            batch = self.order(iteration)
            mine = batch.chunk(self.share[1])[self.share[0]]
            images = self.images[moved(mine, self.images.device)].float() / 255
            draws = Draws(stream(self.seed, _AUGMENT, iteration), len(batch), self.share[0] * len(mine))
            yield [self.normalize(augment(images, view, view.size or self.size, draws)) for view in self.views]


class Normalize:
    """Subtract the data set's mean, divide by its std, per channel."""

    def __init__(self, data: ImageData, device: torch.device) -> None:
        self.mean = torch.tensor(data.mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(data.std, device=device).view(-1, 1, 1)

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class _FolderViews(torch.utils.data.Dataset[list[Tensor] | ConfigError]):
    """One image's views. An item is (iteration, index): the augmentation depends on both, not on the worker."""

    def __init__(self, split: Split, views: tuple[View, ...], size: int, seed: int) -> None:
        self.split, self.views, self.size, self.seed = split, views, size, seed

    def __getitem__(self, item: Any) -> list[Tensor] | ConfigError:
        iteration, index = item
        try:
            image = read_image(self.split.paths[index])[None]
        except ConfigError as error:  # returned, for a worker would wrap it in its traceback
            return error
        draws = Draws(stream(self.seed, _AUGMENT, iteration, index))
        return [augment(image, view, view.size or self.size, draws)[0] for view in self.views]


def _collate(items: list[list[Tensor] | ConfigError]) -> list[Tensor] | ConfigError:
    views = [item for item in items if not isinstance(item, ConfigError)]
    if len(views) < len(items):
        return next(item for item in items if isinstance(item, ConfigError))
    return [torch.stack(parts) for parts in zip(*views, strict=True)]


class FolderBatches:
    """Views of images on disk, decoded and augmented in ``workers`` processes."""

    def set_views(self, views: tuple[View, ...]) -> None:
        """Other views than the configuration's."""
        self.dataset.views = views

    def __init__(self, config: Config, data: ImageData, device: torch.device, share: Share = (0, 1)) -> None:
        self.order = BatchOrder(len(data.train), config.train.batch_size, config.train.seed)
        views = views_of(config)
        self.share = share
        self.dataset = _FolderViews(data.train, views, config.model.img_size, config.train.seed)
        self.workers, self.device = config.data.workers, device
        self.normalize = Normalize(data, device)

    def iterate(self, start: int, stop: int) -> Iterator[list[Tensor]]:
        """The views of batches ``start`` to ``stop`` - 1: a list of (N, C, size, size) tensors."""
        rank, size = self.share
        plan = ([(t, i) for i in self.order(t).chunk(size)[rank].tolist()] for t in range(start, stop))
        loader = torch.utils.data.DataLoader(
            self.dataset,
            batch_sampler=plan,
            collate_fn=_collate,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )
        for views in loader:
            if isinstance(views, ConfigError):
                raise views
            yield [self.normalize(view.to(self.device, non_blocking=True)) for view in views]


def training_batches(
    config: Config, data: ImageData, device: torch.device, share: Share = (0, 1)
) -> MemoryBatches | FolderBatches:
    """The batches of a run; with ``share`` the slice of process (rank, number of processes)."""
    if config.train.batch_size % share[1]:
        raise ConfigError(f"batch_size {config.train.batch_size} cannot be shared by {share[1]} processes evenly")
    kind = FolderBatches if data.train.images is None else MemoryBatches
    return kind(config, data, device, share)


def evaluation_images(data: ImageData, split: Split, size: int, device: torch.device, batch: int) -> Iterator[Tensor]:
    """A split in order, unaugmented, resized and normalised, ``batch`` at a time."""
    normalize = Normalize(data, device)
    for some in torch.arange(len(split)).split(batch):
        part = decoded(split.subset(some), size)
        assert part.images is not None
        images = part.images.to(device).float() / 255
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
        yield normalize(images)


def decoded(split: Split, size: int) -> Split:
    """A split of files as images in memory, (N, 3, size, size) uint8: shorter side, then centre crop. Pillow decodes
    outside the interpreter's lock, so threads help. What is in memory stays as it is."""
    if split.images is not None:
        return split

    def read(path: Path) -> Tensor:
        return (_centre_crop(read_image(path), size) * 255).round().to(torch.uint8)

    with ThreadPoolExecutor() as pool:
        return replace(split, images=torch.stack(list(pool.map(read, split.paths))), paths=())


def _centre_crop(image: Tensor, size: int) -> Tensor:
    """Shorter side to 8/7 of ``size`` (256 for 224), then the middle. (3, H, W) -> (3, size, size)."""
    scale = size * 8 / 7 / min(image.shape[1:])
    resized = [max(size, round(side * scale)) for side in image.shape[1:]]
    image = F.interpolate(image[None], resized, mode="bilinear", align_corners=False, antialias=True)[0]
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    return image[:, top : top + size, left : left + size]
