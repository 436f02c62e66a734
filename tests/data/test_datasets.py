"""Data sets from disk: torchvision's layouts, limits, images that cannot be decoded."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from stabilitylab.config import resolve
from stabilitylab.data.batches import training_batches
from stabilitylab.data.datasets import load_data
from stabilitylab.errors import ConfigError
from stabilitylab.store.reader import open_run
from stabilitylab.studies import train_run


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """CIFAR-10's own files with 4 images each; torchvision checks their hashes, so it is told these."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3072), dtype=np.uint8)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]

    def write(name: str, content: dict[str, object]) -> list[str]:
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw).hexdigest()]

    files = [write(n, {"data": p, "labels": [0, 1, 2, 3]}) for n, p in zip(names, pixels, strict=True)]
    meta = write("batches.meta", {"label_names": list("abcd")})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", files[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", files[5:])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return pixels


def test_cifar10_as_torchvision_lays_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_cifar10(tmp_path, monkeypatch)
    data = load_data(resolve({"data": {"name": f"cifar10:{tmp_path}"}}).data)
    assert data.train.images is not None
    assert data.train.images.shape == (20, 3, 32, 32)
    assert data.train.labels.tolist() == [0, 1, 2, 3] * 5
    np.testing.assert_array_equal(data.train.images.numpy().reshape(20, 3072), pixels[:5].reshape(20, 3072))
    assert data.channels == 3


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_a_folder_without_the_data_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"does not contain {name} in torchvision's layout"):
        load_data(resolve({"data": {"name": f"{name}:{tmp_path}"}}).data)


def test_a_limit_is_the_same_choice_for_every_seed() -> None:
    chosen = [load_data(resolve({"data": {"limit": 100}, "train": {"seed": s}}).data) for s in (0, 1)]
    assert len(chosen[0].train) == 100
    assert torch.equal(chosen[0].train.labels, chosen[1].train.labels)
    assert len(chosen[0].test) == 397
    with pytest.raises(ConfigError, match=r"data.limit = 5000, but there are 1400"):
        load_data(resolve({"data": {"limit": 5000}}).data)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Six photos a class; one of the training set is cut short, one is text."""
    torch.manual_seed(0)
    root = tmp_path / "photos"
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(root / split / name / f"{i}.jpg")
    cut = root / "train" / "cat" / "3.jpg"
    cut.write_bytes(cut.read_bytes()[:900])
    (root / "train" / "dog" / "5.jpg").write_text("no image")
    return root


def configuration(root: Path, **data: object) -> dict[str, object]:
    return {
        "data": {"name": f"imagefolder:{root}", "workers": 0, **data},
        "model": {"arch": "vit_nano", "img_size": 16, "patch_size": 8},
        "method": {"hidden_dim": 16, "out_dim": 8},
        "train": {"iterations": 3, "batch_size": 4, "device": "cpu", "amp": "off"},
        "eval": {"knn_every": 0},
    }


def test_a_damaged_image_is_named(damaged: Path) -> None:
    config = resolve(configuration(damaged))
    batches = training_batches(config, load_data(config.data), torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"cannot decode image .*(3|5)\.jpg.*on_bad_image=skip"):
        list(batches.iterate(0, 3))


def test_damaged_images_are_left_out_and_counted(damaged: Path, tmp_path: Path) -> None:
    config = resolve(configuration(damaged, on_bad_image="skip"))
    data = load_data(config.data)
    assert (len(data.train), len(data.test)) == (10, 12)
    assert sorted(p.name for p in data.left_out) == ["3.jpg", "5.jpg"]
    assert [p.parent.name for p in data.train.paths] == ["cat"] * 5 + ["dog"] * 5
    assert data.train.labels.tolist() == [0] * 5 + [1] * 5
    run = train_run(config, tmp_path / "runs").path
    with open_run(run) as reader:
        (event,) = [e for e in reader.events() if e.kind == "bad-image"]
        assert event.detail.startswith("2 images cannot be decoded and are skipped")


def test_skipped_images_are_left_out_by_their_index_and_the_statistics_stay() -> None:
    whole = load_data(resolve({"data": {"limit": 50}}).data)
    data = load_data(resolve({"data": {"limit": 50, "skip": [7, 3, 3]}}).data)
    rest = [i for i in range(50) if i not in (3, 7)]
    assert torch.equal(data.train.images, whole.train.images[rest])
    assert torch.equal(data.train.labels, whole.train.labels[rest])
    assert (data.mean, data.std, len(data.test)) == (whole.mean, whole.std, len(whole.test))


def test_an_image_to_skip_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.skip: there is no training image 50; .* from 0 to 49"):
        load_data(resolve({"data": {"limit": 50, "skip": [50]}}).data)
    with pytest.raises(ConfigError, match=r"data\.skip: -1 is not the index of an image"):
        resolve({"data": {"skip": [-1]}})
