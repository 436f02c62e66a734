"""Data from the user's own folders."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stabilitylab.config import Config, EvalConfig, resolve
from stabilitylab.data.batches import evaluation_images, training_batches
from stabilitylab.data.datasets import load_data
from stabilitylab.errors import ConfigError
from stabilitylab.train.evaluate import KnnMonitor, features_of

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
    with pytest.raises(ConfigError, match="t10k-images-idx3-ubyte is not a complete IDX file"):
        load_data(resolve({"data": {"name": f"fashion-mnist:{fashion}"}}).data)


def test_files_in_each_others_place_are_named(fashion: Path) -> None:
    labels = fashion / "t10k-labels-idx1-ubyte"
    write_idx(labels, np.arange(7))
    with pytest.raises(ConfigError, match=r"t10k-labels-idx1-ubyte does not contain labels of 10 images: its shape is"):
        load_data(resolve({"data": {"name": f"fashion-mnist:{fashion}"}}).data)
    (fashion / "t10k-images-idx3-ubyte").write_bytes(labels.read_bytes())
    with pytest.raises(ConfigError, match=r"t10k-images-idx3-ubyte does not contain images"):
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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named(photos: Path, workers: int) -> None:
    (photos / "train" / "cat" / "0.jpg").write_bytes(b"not a jpeg")
    config = folder_config(photos, workers=workers)
    with pytest.raises(ConfigError, match=r"^cannot decode image .*cat/0\.jpg"):
        list(training_batches(config, load_data(config.data), CPU).iterate(0, 3))


def test_an_empty_class_folder_is_named(photos: Path) -> None:
    (photos / "train" / "emu").mkdir()
    with pytest.raises(ConfigError, match=r"class folder .*emu has no image"):
        load_data(folder_config(photos).data)


def test_the_monitor_takes_a_fixed_part_of_a_folder(photos: Path) -> None:
    config = folder_config(photos)
    data = load_data(config.data)
    asked = config.model_copy(update={"eval": EvalConfig(knn_bank=5, knn_queries=3, knn_k=1)})
    monitors = [KnnMonitor(asked, data, CPU) for _ in range(2)]
    assert (len(monitors[0].bank), monitors[0].num_samples) == (5, 3)
    assert monitors[0].bank.paths == monitors[1].bank.paths
    encoder = torch.nn.Flatten()
    bank = torch.nn.functional.normalize(features_of(encoder, data, monitors[0].bank, 32, CPU))
    queries = torch.nn.functional.normalize(features_of(encoder, data, monitors[0].queries, 32, CPU))
    right = monitors[0].bank.labels[(queries @ bank.T).argmax(1)] == monitors[0].queries.labels
    assert monitors[0](encoder).item() == pytest.approx(right.float().mean().item())


@pytest.mark.parametrize("name", ["fashion-mnist", "imagefolder"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="data folder /no/such does not exist"):
        load_data(resolve({"data": {"name": f"{name}:/no/such"}}).data)
    with pytest.raises(ConfigError, match=rf"data {name} needs a folder: --data {name}:DIR"):
        load_data(resolve({"data": {"name": name}}).data)
