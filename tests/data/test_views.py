from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from stabilitylab.config import ConfigError, resolve
from stabilitylab.data.batches import BatchOrder, training_batches
from stabilitylab.data.datasets import load_data
from stabilitylab.data.views import Draws, View, augment, gaussian_blur, luma, rotate_hue, two_views

OFF = {"jitter_p": 0.0, "grey_p": 0.0, "flip_p": 0.0}


def generator(seed: int = 0) -> Draws:
    return Draws(torch.Generator().manual_seed(seed))


def test_the_papers_two_views() -> None:
    one, two = two_views("photo", 0.08)
    assert one.crop == two.crop == (0.08, 1.0)
    assert (one.blur_p, one.solarize_p) == (1.0, 0.0)
    assert (two.blur_p, two.solarize_p) == (0.1, 0.2)
    for view in (one, two):
        assert view.jitter == (0.4, 0.4, 0.2, 0.1)
        assert (view.jitter_p, view.grey_p, view.flip_p, view.blur_sigma) == (0.8, 0.2, 0.5, (0.1, 2.0))


def test_hue_rotation_equals_colorsys() -> None:
    torch.manual_seed(0)
    x, turn = torch.rand(3, 3, 4, 5), torch.tensor([-0.1, 0.03, 0.5])
    got = rotate_hue(x, turn)
    for n in range(3):
        for i in range(4):
            for j in range(5):
                h, s, v = colorsys.rgb_to_hsv(*x[n, :, i, j].tolist())
                expected = colorsys.hsv_to_rgb((h + turn[n].item()) % 1, s, v)
                assert got[n, :, i, j].tolist() == pytest.approx(expected, abs=1e-5)


def test_blur_equals_torchvisions() -> None:
    from torchvision.transforms.v2.functional import gaussian_blur as reference

    torch.manual_seed(0)
    x = torch.rand(2, 3, 20, 18)
    got = gaussian_blur(x, (1.3, 1.3), generator())
    torch.testing.assert_close(got, reference(x, [9, 9], [1.3, 1.3]), atol=2e-5, rtol=0)


def test_a_full_crop_is_the_resized_image() -> None:
    x = torch.rand(3, 1, 8, 8)
    view = View(crop=(1.0, 1.0), ratio=(1.0, 1.0), **OFF)
    expected = torch.nn.functional.interpolate(x, (16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(augment(x, view, 16, generator()), expected, atol=1e-5, rtol=0)


def test_a_sure_flip_mirrors() -> None:
    x = torch.rand(2, 3, 8, 8)
    view = View(crop=(1.0, 1.0), ratio=(1.0, 1.0), **(OFF | {"flip_p": 1.0}))
    torch.testing.assert_close(augment(x, view, 8, generator()), x.flip(3), atol=1e-5, rtol=0)


def test_crops_keep_area_and_stay_inside() -> None:
    """A ramp image tells where each crop lies: its corners are the crop's corners."""
    side = 64
    ramp = torch.linspace(0, 1, side)
    x = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side)])[None].repeat(2000, 1, 1, 1)
    view = View(crop=(0.2, 0.8), **OFF)
    out = augment(x, view, 32, generator())
    width, height = out[:, 0, 0, -1] - out[:, 0, 0, 0], out[:, 1, -1, 0] - out[:, 1, 0, 0]
    area = (width * height * (32 / 31) ** 2 * (63 / 64) ** 2).numpy()
    assert 0.19 < area.min() < 0.23
    assert 0.75 < area.max() < 0.82
    assert np.mean(area) == pytest.approx(0.5, abs=0.02)
    ratio = (width / height).numpy()
    assert 0.72 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.4


def test_solarize_and_grey() -> None:
    x = torch.rand(4, 3, 8, 8)
    full = {"crop": (1.0, 1.0), "ratio": (1.0, 1.0)}
    solar = augment(x, View(**full, **(OFF | {"solarize_p": 1.0})), 8, generator())
    torch.testing.assert_close(solar, torch.where(x >= 0.5, 1 - x, x), atol=1e-4, rtol=0)
    grey = augment(x, View(**full, **(OFF | {"grey_p": 1.0})), 8, generator())
    torch.testing.assert_close(grey, luma(x).expand_as(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_stay_in_range_and_depend_on_the_seed_alone(channels: int) -> None:
    x = torch.rand(8, channels, 12, 12)
    for view in two_views("photo", 0.08):
        first = augment(x, view, 16, generator(3))
        assert first.shape == (8, channels, 16, 16)
        assert first.min() >= 0
        assert first.max() <= 1
        assert torch.equal(first, augment(x, view, 16, generator(3)))
        assert not torch.equal(first, augment(x, view, 16, generator(4)))


def test_an_epoch_visits_each_image_at_most_once_and_epochs_differ() -> None:
    order = BatchOrder(50, 8, seed=1)
    assert order.iterations_per_epoch == 6
    epochs = [torch.cat([order(e * 6 + i) for i in range(6)]) for e in range(2)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 48
    assert not torch.equal(*epochs)
    assert torch.equal(order(3), BatchOrder(50, 8, seed=1)(3))


def test_a_batch_depends_on_its_iteration_and_not_on_where_training_started() -> None:
    config = resolve({"train": {"batch_size": 16}})
    data = load_data(config.data)
    batches = training_batches(config, data, torch.device("cpu"))
    straight = list(batches.iterate(0, 90))
    later = list(batches.iterate(88, 90))
    for a, b in zip(straight[88:], later, strict=True):
        assert all(map(torch.equal, a, b))
    assert not torch.equal(straight[0][0], straight[0][1])


def test_digits_are_the_real_ones() -> None:
    data = load_data(resolve().data)
    assert (len(data.train), len(data.test), data.channels, data.num_classes) == (1400, 397, 1, 10)
    assert data.train.images is not None
    assert data.train.images.max() == 255


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size 4096 is larger than the data set \\(1400 images\\)"):
        BatchOrder(1400, 4096, 0)


def stretched(boxes: torch.Tensor) -> torch.Tensor:
    """Pixel aspect ratios of crops, read off ramps in x and y: the value range of each is what the crop spans."""
    spans = boxes.flatten(2).amax(2) - boxes.flatten(2).amin(2)
    return spans[:, 0] / spans[:, 1]


@pytest.mark.parametrize("antialias", [False, True])
def test_crops_of_a_photo_keep_the_papers_aspect_ratios(antialias: bool) -> None:
    """On a photo twice as wide as it is high, in pixels and not in shares of its sides."""
    height, width = 120, 240
    ramps = torch.stack(
        [torch.arange(width).expand(height, width), torch.arange(height)[:, None].expand(height, width)]
    )
    image, draws = (ramps / width)[None].float(), generator()
    view = View(crop=(0.05, 0.15), **OFF)  # small enough to fit at any ratio
    crops = torch.cat([augment(image, view, 32, draws, antialias=antialias) for _ in range(200)])
    ratio = stretched(crops)
    assert ratio.min() > 0.75 * 0.94
    assert ratio.max() < 4 / 3 * 1.06
    assert 0.93 < ratio.median() < 1.07


def test_a_photos_crop_equals_torchvisions_resize() -> None:
    from torchvision.transforms.v2.functional import resized_crop

    torch.manual_seed(0)
    image = torch.rand(1, 3, 90, 120)
    whole = augment(image, View(crop=(1.0, 1.0), ratio=(4 / 3, 4 / 3), **OFF), 24, generator(), antialias=True)
    torch.testing.assert_close(whole, resized_crop(image, 0, 0, 90, 120, [24, 24], antialias=True))
