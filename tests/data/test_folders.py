"""Data from the user's own folders."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stabilitylab.config import Config, ConfigError, resolve
from stabilitylab.data.batches import evaluation_images, training_batches
from stabilitylab.data.datasets import load_data

CPU = torch.device("cpu")


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for stem, count, ending in (("train", 40, ".gz"), ("t10k", 10, "")):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte{ending}", rng.integers(0, 256, (count, 28, 28)))
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte{ending}", np.arange(count) % 10)
    return tmp_path


def test_idx_files_plain_and_gzipped(fashion: Path) -> None:
    data = load_data(resolve({"data": {"name": f"fashion-mnist:{fashion}"}}).data)
    assert data.train.images is not None
    assert data.train.images.shape == (40, 1, 28, 28)
    assert data.test.labels.tolist() == list(range(10))


def test_a_cut_idx_file_is_named(fashion: Path) -> None:
    path = fashion / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ConfigError, match="t10k-images-idx3-ubyte is not a whole IDX file"):
        load_data(resolve({"data": {"name": f"fashion-mnist:{fashion}"}}).data)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    for split, count in (("train", 6), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (40 + i, 50, 3), dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return tmp_path


def folder_config(root: Path, **data: object) -> Config:
    return resolve(
        {
            "data": {"name": f"imagefolder:{root}", "workers": 0, **data},
            "model": {"img_size": 32, "patch_size": 16},
            "train": {"batch_size": 4, "amp": "off"},
        }
    )


def test_an_image_folder_gives_views_that_no_worker_count_changes(photos: Path) -> None:
    data = load_data(folder_config(photos).data)
    assert (len(data.train), len(data.test), data.channels) == (12, 4, 3)
    runs = [
        [v for views in training_batches(folder_config(photos, workers=w), data, CPU).iterate(0, 4) for v in views]
        for w in (0, 2)
    ]
    assert all(map(torch.equal, *runs))
    assert runs[0][0].shape == (4, 3, 32, 32)
    images = torch.cat(list(evaluation_images(data, data.test, 32, CPU, 3)))
    assert images.shape == (4, 3, 32, 32)


def test_a_corrupt_image_is_named(photos: Path) -> None:
    (photos / "train" / "cat" / "0.jpg").write_bytes(b"not a jpeg")
    config = folder_config(photos)
    with pytest.raises(ConfigError, match=r"cannot decode image .*cat/0\.jpg"):
        list(training_batches(config, load_data(config.data), CPU).iterate(0, 3))


def test_an_empty_class_folder_is_named(photos: Path) -> None:
    (photos / "train" / "emu").mkdir()
    with pytest.raises(ConfigError, match=r"class folder .*emu has no image"):
        load_data(folder_config(photos).data)


@pytest.mark.parametrize("name", ["fashion-mnist", "imagefolder"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="data folder /no/such does not exist"):
        load_data(resolve({"data": {"name": f"{name}:/no/such"}}).data)
    with pytest.raises(ConfigError, match=rf"data {name} needs a folder: --data {name}:DIR"):
        load_data(resolve({"data": {"name": name}}).data)
