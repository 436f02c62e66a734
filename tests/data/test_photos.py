"""Photos from files: distributions as in torchvision, 8-bit and 16-bit files, and the compact file list."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torchvision import transforms
from torchvision.transforms import functional as tv

from stabilitylab.data import listing
from stabilitylab.data.listing import Files, list_images
from stabilitylab.data.photos import (
    _saturation,
    _stretched,
    augment_photo,
    crop_box,
    jittered,
    read_photo,
    turned_hue,
    views_of_file,
)
from stabilitylab.data.views import View, rotate_hue
from stabilitylab.errors import ConfigError

PLAIN = View(jitter_p=0.0, grey_p=0.0, flip_p=0.0)


def photo(width: int = 500, height: int = 375, seed: int = 0) -> Image.Image:
    """A smooth photo-like image."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def test_crop_boxes_have_torchvisions_distribution() -> None:
    view, rng = View(crop=(0.08, 1.0)), np.random.default_rng(0)
    ours = np.array([crop_box(375, 500, view, rng) for _ in range(6000)], dtype=float)
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(6000)], dtype=float
    )
    for column in range(4):
        a, b = ours[:, column], theirs[:, column]
        assert (
            np.abs(np.quantile(a, np.linspace(0.05, 0.95, 10)) - np.quantile(b, np.linspace(0.05, 0.95, 10))).max() < 12
        )
    area = ours[:, 2] * ours[:, 3] / (375 * 500)
    assert area.mean() == pytest.approx(0.435, abs=0.012)
    assert crop_box(10, 1000, View(crop=(0.9, 1.0)), rng) == (0, 493, 10, 13)  # none fits: the centre


def test_crop_resize_and_flip_are_torchvisions_pixel_by_pixel() -> None:
    image, rng = photo(), np.random.default_rng(1)
    box = (30, 40, 200, 260)
    ours = augment_photo(image, box, View(jitter_p=0.0, grey_p=0.0, flip_p=1.0), 64, rng)
    theirs = tv.hflip(tv.resized_crop(image, *box, [64, 64]))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.4])
def test_brightness_contrast_and_saturation_are_torchvisions_to_a_rounding(factor: float) -> None:
    image = photo(64, 64)
    mean = float(np.asarray(image.convert("L"), dtype=float).mean())
    pairs = [
        (image.point(_stretched(0.0, factor)), tv.adjust_brightness(image, factor)),
        (image.point(_stretched(mean, factor)), tv.adjust_contrast(image, factor)),
        (image.convert("RGB", _saturation(factor)), tv.adjust_saturation(image, factor)),
    ]
    for ours, theirs in pairs:
        assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 2


@pytest.mark.parametrize("turn", [-0.2, -0.1, 0.0, 0.07, 0.2])
def test_the_hue_is_turned_as_for_batches_in_memory_and_by_torchvision(turn: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    noise[0], noise[1, :, 1] = 77, noise[1, :, 0]  # grey pixels, and ties of two channels
    image = Image.fromarray(noise)
    ours = np.asarray(turned_hue(image, turn), dtype=float)
    exact = rotate_hue(torch.from_numpy(noise).permute(2, 0, 1)[None].float() / 255, torch.tensor([turn]))[0] * 255
    assert np.abs(ours - exact.permute(1, 2, 0).numpy()).max() < 0.51
    smooth = photo(64, 64)
    difference = np.asarray(turned_hue(smooth, turn), dtype=int) - np.asarray(tv.adjust_hue(smooth, turn), dtype=int)
    assert np.abs(difference).mean() < 2.5  # it rounds hue, saturation and value to 8 bits


def test_jitter_draws_as_often_and_as_strongly_as_torchvision() -> None:
    image = photo(32, 32)
    rng = np.random.default_rng(0)
    view = View(crop=(1.0, 1.0), ratio=(1.0, 1.0), grey_p=0.2, flip_p=0.0, blur_p=0.1, solarize_p=0.2)
    ours = np.stack([np.asarray(augment_photo(image, (0, 0, 32, 32), view, 32, rng)) for _ in range(700)]).astype(float)
    torch.manual_seed(0)
    theirs_of = transforms.Compose(
        [
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomSolarize(128, p=0.2),
        ]
    )
    theirs = np.stack([np.asarray(theirs_of(image)) for _ in range(700)]).astype(float)
    assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 15
    assert np.abs(ours.std(0) - theirs.std(0)).max() < 15
    grey = (np.ptp(ours, axis=3).max((1, 2)) == 0).mean()
    assert grey == pytest.approx(0.2, abs=0.05)


def test_views_depend_on_the_generator_alone_and_are_not_all_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    photo().save(path)
    views = (View(blur_p=1.0), View(blur_p=0.1, solarize_p=0.2))
    a, b, c = (views_of_file(path, views, 32, np.random.default_rng(s)) for s in (1, 1, 2))
    assert [v.shape for v in a] == [(32, 32, 3)] * 2
    assert a[0].dtype == torch.uint8
    assert all(map(torch.equal, a, b))
    assert not torch.equal(a[0], c[0])


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.jpg"
    photo(1600, 1200).save(path, quality=95)
    small = views_of_file(path, (PLAIN, PLAIN), 64, np.random.default_rng(3))
    asked = []
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: asked.append(1))
    full = views_of_file(path, (PLAIN, PLAIN), 64, np.random.default_rng(3))
    assert asked
    for a, b in zip(small, full, strict=True):
        assert (a.float() - b.float()).abs().mean() < 1.5
        assert not torch.equal(a, b)


def test_a_grey_image_of_16_bits_keeps_its_contrast(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "detector.png")
    read = np.asarray(read_photo(tmp_path / "detector.png"))
    assert read.shape == (64, 64, 3)
    assert np.array_equal(read[..., 0], values // 257)
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ConfigError, match=r"float\.tif: it contains floating-point values"):
        read_photo(tmp_path / "float.tif")


def make_tree(root: Path, age: float = 10.0) -> None:
    for name in ("b", "a"):
        for inner in ("", "deep/"):
            (root / name / inner).mkdir(parents=True, exist_ok=True)
            for i in range(3):
                (root / name / f"{inner}{i}.JPG").touch()
        (root / name / "notes.txt").touch()
    then = 1_700_000_000 - age
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        os.utime(folder, (then, then))


def test_the_list_of_files_is_sorted_cached_and_follows_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "images"
    make_tree(root)
    expected = [p for name in ("a", "b") for p in sorted((root / name).rglob("*.JPG"))]
    found = list_images(root, ["a", "b"])
    assert list(found.files) == expected
    assert found.counts.tolist() == [6, 6]
    monkeypatch.setattr(listing, "_walk", lambda *_: pytest.fail("listed again"))
    again = list_images(root, ["a", "b"])
    assert list(again.files) == expected
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (root / "a" / "deep" / "new.jpg").touch()
    assert len(list_images(root, ["a", "b"]).files) == 13
    for cache in (tmp_path / "cache").rglob("*.npz"):
        cache.write_bytes(b"damaged")
    assert len(list_images(root, ["a", "b"]).files) == 13


def test_files_behave_as_a_sequence_of_paths() -> None:
    files = Files.of(Path("/r"), ["a/1.jpg", "a/2.jpg", "b/ü.jpg"])
    assert (len(files), files[-1], files[0]) == (3, Path("/r/b/ü.jpg"), Path("/r/a/1.jpg"))
    part = files.subset(np.array([2, 0]))
    assert list(part) == [Path("/r/b/ü.jpg"), Path("/r/a/1.jpg")]
    assert list(part.subset(np.array([1]))) == [Path("/r/a/1.jpg")]
    assert files[1:] == [Path("/r/a/2.jpg"), Path("/r/b/ü.jpg")]
    with pytest.raises(IndexError):
        files[3]


def test_a_jittered_image_is_never_out_of_range() -> None:
    out = np.asarray(jittered(photo(32, 32), (0.8, 0.8, 0.8, 0.2), np.random.default_rng(0)))
    assert out.dtype == np.uint8
