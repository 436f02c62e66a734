from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from stabilitylab.config import resolve
from stabilitylab.data.batches import BatchOrder, training_batches
from stabilitylab.data.datasets import load_data
from stabilitylab.data.views import Draws, View, augment, crop_boxes, gaussian_blur, luma, rotate_hue, two_views
from stabilitylab.errors import ConfigError

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


def torchvision_boxes(sides: tuple[int, int], view: View, n: int) -> np.ndarray:
    """``n`` boxes (top, left, height, width) drawn by torchvision."""
    from torchvision.transforms.v2 import RandomResizedCrop

    torch.manual_seed(0)
    transform, image = RandomResizedCrop(32, view.crop, view.ratio), torch.empty(3, *sides)
    boxes = [transform.make_params([image]) for _ in range(n)]
    return np.array([[box[name] for name in ("top", "left", "height", "width")] for box in boxes])


@pytest.mark.parametrize("crop", [(0.08, 1.0), (0.05, 0.14), (0.2, 1.0)])
@pytest.mark.parametrize("sides", [(375, 500), (28, 28), (8, 8), (12, 100), (100, 12)])
def test_crop_boxes_follow_torchvisions_law(sides: tuple[int, int], crop: tuple[float, float]) -> None:
    """On a photo, on small images, and where hardly any box fits, so that the crop is the central one."""
    view, n = View(crop=crop), 4000
    ours = crop_boxes(n, sides, view, generator()).double().numpy()
    theirs = torchvision_boxes(sides, view, n).astype(float)
    assert (ours >= 0).all()
    assert (ours[:, 2:] > 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= sides).all()
    areas = [boxes[:, 2] * boxes[:, 3] / math.prod(sides) for boxes in (ours, theirs)]
    for a, b in zip([*ours.T, areas[0]], [*theirs.T, areas[1]], strict=True):
        assert ks_2samp(a, b).pvalue > 1e-4


def test_crops_of_a_photo_are_as_large_as_torchvisions() -> None:
    """A box that does not fit is redrawn. If it were clamped, 12% of the crops would exceed 0.8, not 6%."""
    boxes = crop_boxes(40_000, (375, 500), View(), generator())
    area = (boxes[:, 2] * boxes[:, 3] / (375 * 500)).double()
    assert area.mean().item() == pytest.approx(0.435, abs=0.005)
    assert (area > 0.8).double().mean().item() == pytest.approx(0.057, abs=0.005)


@pytest.mark.parametrize(("sides", "size"), [((8, 8), 12), ((28, 28), 28), ((40, 30), 12)])
def test_views_of_a_batch_equal_torchvisions_crop_resize_and_flip(sides: tuple[int, int], size: int) -> None:
    from torchvision.transforms.v2.functional import horizontal_flip, resized_crop

    torch.manual_seed(0)
    x, view = torch.rand(50, 3, *sides), View(**(OFF | {"flip_p": 0.5}))
    got, draws = augment(x, view, size, generator()), generator()
    boxes, flips = crop_boxes(50, sides, view, draws), draws.rand(50) < 0.5
    for image, out, box, flip in zip(x, got, boxes.tolist(), flips, strict=True):
        expected = resized_crop(image, *box, [size, size], antialias=True)
        torch.testing.assert_close(out, horizontal_flip(expected) if flip else expected, atol=2e-6, rtol=0)
    one, draws = augment(x[:1], view, size, generator()), generator()
    expected = resized_crop(x[:1], *crop_boxes(1, sides, view, draws)[0].tolist(), [size, size], antialias=True)
    torch.testing.assert_close(one, expected.flip(3) if draws.rand(1) < 0.5 else expected, atol=2e-6, rtol=0)


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
