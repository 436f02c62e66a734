"""Image data sets. Nothing is downloaded: the data comes from an installed package or from the user's folder.

Small data sets are held in memory as one uint8 tensor. An image folder is read file by file.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stabilitylab.config import DataConfig
from stabilitylab.data.listing import Files, list_images
from stabilitylab.data.photos import read_photo
from stabilitylab.datasets import DATASETS
from stabilitylab.errors import ConfigError
from stabilitylab.registry import located

DIGITS_TRAIN = 1400  # the other 397 are held out for the kNN monitor
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Split:
    """``images`` (N, C, H, W) uint8 and ``labels`` (N,) int64, or, for a folder, N ``paths`` instead of images."""

    labels: Tensor
    images: Tensor | None = None
    paths: Files | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> Split:
        """The images at ``index`` (n,), in that order."""
        images = None if self.images is None else self.images[index]
        paths = None if self.paths is None else self.paths.subset(index.numpy())
        return Split(self.labels[index], images, paths)


@dataclass(frozen=True)
class ImageData:
    """Training images, held-out images for the kNN monitor, and the per-channel mean and std on the [0, 1] scale."""

    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    left_out: tuple[Path, ...] = ()  # images that could not be decoded

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def num_classes(self) -> int:
        return int(max(self.train.labels.max(), self.test.labels.max())) + 1


def _in_memory(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> ImageData:
    scaled = train.float() / 255
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3))
    return ImageData(Split(train_labels, train), Split(test_labels, test), tuple(mean.tolist()), tuple(std.tolist()))


def load_digits(folder: str) -> ImageData:
    """scikit-learn's 1,797 handwritten digits, 8x8, shipped in its wheel. The split is the same for every run."""
    from sklearn.datasets import load_digits as sklearn_digits

    if folder:
        raise ConfigError(f"data digits takes no folder, but got {folder!r}; use --data digits")
    bunch = sklearn_digits()
    images = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    images, labels = images[order], labels[order]
    n = DIGITS_TRAIN
    return _in_memory(images[:n], labels[:n], images[n:], labels[n:])


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes (LeCun's MNIST format), gzipped or not. Raises ConfigError if damaged."""
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        zeros, kind, dims = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{dims}I", raw, 4)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * dims)
    if zeros or kind != 8 or body.size != int(np.prod(shape)):
        raise ConfigError(f"{path} is not a complete IDX file of bytes; download it again")
    return body.reshape(shape)


def load_fashion_mnist(folder: str) -> ImageData:
    """Fashion-MNIST (60,000 + 10,000 grey 28x28 images) from its four IDX files, gzipped or not."""
    root = _folder("fashion-mnist", folder)
    parts: list[Tensor] = []
    for stem in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        files = [root / f"{stem}-ubyte{end}" for end in ("", ".gz") if (root / f"{stem}-ubyte{end}").is_file()]
        if not files:
            raise ConfigError(f"{root} has no {stem}-ubyte or {stem}-ubyte.gz; pass the folder of the IDX files")
        array = read_idx(files[0])
        images = stem.endswith("idx3")
        if array.ndim != (3 if images else 1) or (not images and len(array) != len(parts[-1])):
            what = "images" if images else f"labels of {len(parts[-1])} images"
            raise ConfigError(f"{files[0]} does not contain {what}: its shape is {array.shape}")
        parts.append(torch.from_numpy(array.copy()))
    return _in_memory(parts[0][:, None], parts[1].long(), parts[2][:, None], parts[3].long())


def load_image_folder(folder: str) -> ImageData:
    """``DIR/train/CLASS/*`` and ``DIR/val/CLASS/*`` (or ``test``), as ImageNet is usually laid out."""
    root = _folder("imagefolder", folder)
    train = root / "train"
    test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if not train.is_dir() or test is None:
        raise ConfigError(f"{root} needs the folders train and val (or test), each with one folder per class")
    classes = sorted(path.name for path in train.iterdir() if path.is_dir())
    return ImageData(_split(train, classes), _split(test, classes), IMAGENET_MEAN, IMAGENET_STD)


def without_bad_images(data: ImageData) -> ImageData:
    """``data`` without the images that cannot be decoded. Decodes every image once."""
    bad: list[Path] = []
    splits = []
    for split in (data.train, data.test):
        assert split.paths is not None
        with ThreadPoolExecutor() as pool:  # Pillow releases the GIL while it decodes
            good = list(pool.map(_decodes, split.paths))
        bad += [path for path, fine in zip(split.paths, good, strict=True) if not fine]
        splits.append(split.subset(torch.tensor(good).nonzero().flatten()))
    if not len(splits[0]) or not len(splits[1]):
        raise ConfigError(f"no image can be decoded; the first that cannot: {bad[0]}")
    return replace(data, train=splits[0], test=splits[1], left_out=tuple(bad))


def _decodes(path: Path) -> bool:
    try:
        read_photo(path)
    except ConfigError:
        return False
    return True


def load_torchvision(name: str, folder: str) -> ImageData:
    """CIFAR-10, CIFAR-100 or STL-10 as torchvision reads it from ``folder``. Nothing is downloaded."""
    from torchvision import datasets

    root = _folder(name, folder)
    make = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}[name]
    parts: list[Tensor] = []
    for train in (True, False):
        try:
            split = {"split": "train" if train else "test"} if name == "stl10" else {"train": train}
            dataset = make(root, download=False, **split)
        except RuntimeError:
            raise ConfigError(f"{root} does not contain {name} in torchvision's layout; download it first") from None
        images = torch.from_numpy(np.asarray(dataset.data))
        images = images if name == "stl10" else images.permute(0, 3, 1, 2).contiguous()
        labels = dataset.labels if name == "stl10" else dataset.targets
        parts += [images, torch.as_tensor(np.asarray(labels), dtype=torch.long)]
    return _in_memory(*parts)


def _split(root: Path, classes: list[str]) -> Split:
    if not classes:
        raise ConfigError(f"{root} has no class folder with images")
    for name in classes:
        if not (root / name).is_dir():
            raise ConfigError(f"class folder {root / name} has no image; add images or remove the class")
    listing = list_images(root, classes)
    empty = (listing.counts == 0).nonzero()[0]
    if len(empty):
        raise ConfigError(f"class folder {root / classes[empty[0]]} has no image; add images or remove the class")
    return Split(torch.arange(len(classes)).repeat_interleave(torch.from_numpy(listing.counts)), paths=listing.files)


def _folder(kind: str, folder: str) -> Path:
    if not folder:
        raise ConfigError(f"data {kind} needs a folder: --data {kind}:DIR")
    if not Path(folder).is_dir():
        raise ConfigError(f"data folder {folder} does not exist; pass the folder that contains {kind}")
    return Path(folder)


load_cifar10 = partial(load_torchvision, "cifar10")
load_cifar100 = partial(load_torchvision, "cifar100")
load_stl10 = partial(load_torchvision, "stl10")


def load_data(config: DataConfig) -> ImageData:
    """Load the data set that ``config.name`` names. Raises ConfigError if a folder or file is missing."""
    data = located(DATASETS.choose(config.kind).load)(config.folder)
    if config.on_bad_image == "skip" and data.train.images is None:
        data = without_bad_images(data)
    data = data if config.limit is None else _limited(data, config.limit)
    return replace(data, train=data.train.subset(kept_images(config, len(data.train)))) if config.skip else data


def kept_images(config: DataConfig, num_images: int) -> Tensor:
    """Indices (n,) of the training images that remain after ``config.skip`` removes some of the ``num_images``."""
    if config.skip and config.skip[-1] >= num_images:
        raise ConfigError(
            f"data.skip: there is no training image {config.skip[-1]}; they are numbered from 0 to {num_images - 1}"
        )
    left = torch.ones(num_images, dtype=torch.bool)
    left[list(config.skip)] = False
    return left.nonzero().flatten()


def _limited(data: ImageData, limit: int) -> ImageData:
    """A random subset of the training images. It is fixed, so runs with different seeds see the same images."""
    if limit > len(data.train):
        raise ConfigError(f"data.limit = {limit}, but there are {len(data.train)} training images")
    index = torch.from_numpy(np.random.default_rng(0).permutation(len(data.train))[:limit]).sort().values
    return replace(data, train=data.train.subset(index))
