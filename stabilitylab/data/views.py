"""The two views of MoCo v3 (PAPER, Implementation), computed for a whole batch on its device.

All random numbers are drawn on the CPU from one generator, so the views of a batch depend only on the seed, not on the
device or on the number of processes that share the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from stabilitylab.config import Config

CROP_TRIALS = 10  # torchvision's


@dataclass(frozen=True, kw_only=True)
class View:
    """One augmentation pipeline. Each ``p`` is a probability per image; jitter strengths as in torchvision."""

    crop: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: float = 0.0
    flip_p: float = 0.5
    size: int | None = None  # pixels; None: the run's image size


class Draws:
    """Random numbers for rows ``start`` to ``start + n - 1`` of a batch of ``total`` images. Every process draws for
    the whole batch, so each image gets the same view as in single-process training."""

    def __init__(self, generator: Generator, total: int | None = None, start: int = 0) -> None:
        self.generator, self.total, self.start = generator, total, start

    def rand(self, n: int, *shape: int) -> Tensor:
        """Uniform in [0, 1), (n, *shape)."""
        drawn = torch.rand(self.total or n, *shape, generator=self.generator)
        return drawn[self.start : self.start + n]

    def order(self, n: int) -> list[int]:
        """One permutation for the whole batch."""
        return torch.randperm(n, generator=self.generator).tolist()


def moved(drawn: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to ``device``. The copy to CUDA goes through pinned memory, so it does not block the CPU."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)


JITTER_SWAV = (0.8, 0.8, 0.8, 0.2)


def two_views(kind: str, crop_min: float) -> tuple[View, View]:
    """The two global views for ``data.views``. ``photo`` and ``dino``: the asymmetric pair of BYOL, MoCo v3, VICReg and
    DINO. ``swav``: stronger colour jitter, blur with probability 0.5. ``grey``: crops, brightness and contrast only;
    no flips, because a mirrored digit is not a valid digit."""
    crop = (crop_min, 1.0)
    if kind in ("photo", "dino"):
        return View(crop=crop, blur_p=1.0), View(crop=crop, blur_p=0.1, solarize_p=0.2)
    if kind == "swav":
        swav = View(crop=crop, jitter=JITTER_SWAV, blur_p=0.5)
        return swav, swav
    grey = View(crop=crop, jitter=(0.4, 0.4, 0.0, 0.0), grey_p=0.0, flip_p=0.0)
    return grey, grey


def views_of(config: Config) -> tuple[View, ...]:
    """The two global views, followed by the local crops, if any. A local crop is augmented like the second global view;
    with ``dino``, blur has probability 0.5 and there is no solarization."""
    data, model = config.data, config.model
    views = two_views(data.views, data.crop_min)
    half = max(model.img_size // 2 // model.patch_size, 1) * model.patch_size
    local = replace(views[1], crop=data.local_crop, size=data.local_size or half)
    if data.views == "dino":
        local = replace(local, blur_p=0.5, solarize_p=0.0)
    return (*views, *[local] * data.local_crops)


def augment(images: Tensor, view: View, size: int, draws: Draws) -> Tensor:
    """One random view of each image: (N, C, H, W) in [0, 1] -> (N, C, size, size) in [0, 1]."""
    x = random_resized_crop(images, view, size, draws)
    x = colour_jitter(x, view, draws)
    if view.grey_p and x.shape[1] == 3:
        x = torch.where(_chosen(x, view.grey_p, draws), luma(x).expand_as(x), x)
    if view.blur_p:
        x = torch.where(_chosen(x, view.blur_p, draws), gaussian_blur(x, view.blur_sigma, draws), x)
    if view.solarize_p:
        chosen = _chosen(x, view.solarize_p, draws)
        x = torch.where(chosen & (x >= 0.5), 1 - x, x)
    return x


def _uniform(n: int, low: float, high: float, draws: Draws, like: Tensor) -> Tensor:
    return moved(draws.rand(n) * (high - low) + low, like.device).to(like.dtype)


def _chosen(x: Tensor, p: float, draws: Draws) -> Tensor:
    return moved(draws.rand(len(x), 1, 1, 1) < p, x.device)


def random_resized_crop(x: Tensor, view: View, size: int, draws: Draws) -> Tensor:
    """Crop, resize to ``size`` x ``size`` and flip, as torchvision's ``RandomResizedCrop`` and
    ``RandomHorizontalFlip`` do: bilinear, antialiased, cropped before it is resized.

    (N, C, H, W) -> (N, C, size, size).
    """
    height, width = x.shape[2:]
    boxes = crop_boxes(len(x), (height, width), view, draws)
    mirror = draws.rand(len(x)) < view.flip_p
    if len(x) == 1:  # a single image: cropping it is cheaper than a matrix product over all its pixels
        top, left, h, w = boxes[0].tolist()
        crop = x[..., top : top + h, left : left + w]
        crop = F.interpolate(crop, (size, size), mode="bilinear", align_corners=False, antialias=True)
        return crop.flip(3) if mirror.item() else crop
    top, left, h, w = boxes.unbind(1)
    down = _resize_weights(top, h, height, size)
    across = _resize_weights(left, w, width, size)
    across = torch.where(mirror.view(-1, 1, 1), across.flip(1), across)
    down, across = (moved(weights.to(x.dtype), x.device) for weights in (down, across))
    return down[:, None] @ x @ across.mT[:, None]


def crop_boxes(n: int, sides: tuple[int, int], view: View, draws: Draws) -> Tensor:
    """Crop boxes for ``n`` images of size ``sides`` (H, W), distributed as in torchvision's ``RandomResizedCrop``: draw
    an area fraction and a log-uniform aspect ratio until the box fits, at most ten times; if none fits, take the
    largest centre crop that ``view.ratio`` allows.

    Returns (n, 4) integers: top, left, height, width, in pixels.
    """
    height, width = sides
    low, high = view.ratio
    area = height * width * (view.crop[0] + (view.crop[1] - view.crop[0]) * draws.rand(n, CROP_TRIALS).double())
    ratio = torch.exp(math.log(low) + math.log(high / low) * draws.rand(n, CROP_TRIALS).double())
    h, w = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
    first = fits.byte().argmax(1, keepdim=True)
    fitting = fits.any(1)
    h = torch.where(fitting, h.gather(1, first)[:, 0], min(height, round(width / low)))
    w = torch.where(fitting, w.gather(1, first)[:, 0], min(width, round(height * high)))
    top, left = draws.rand(n).double(), draws.rand(n).double()
    top = torch.where(fitting, top * (height - h + 1), (height - h) / 2).floor()
    left = torch.where(fitting, left * (width - w + 1), (width - w) / 2).floor()
    return torch.stack([top, left, h, w], 1).long()


def _resize_weights(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Weights (N, size, side) of an antialiased bilinear resize to ``size`` pixels. The input is the pixels ``start``
    to ``start + length`` - 1, each (N,), of a side of ``side`` pixels. Rows sum to 1."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    scale = length / size
    centres = start + scale * (torch.arange(size) + 0.5).view(-1, 1)
    pixels = torch.arange(side) + 0.5
    weights = (1 - (pixels - centres).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixels > start) & (pixels < start + length))
    return weights / weights.sum(2, keepdim=True)


def luma(x: Tensor) -> Tensor:
    """ITU-R 601 grey, (N, 3, H, W) -> (N, 1, H, W)."""
    if x.shape[1] == 1:
        return x
    weight = torch.tensor([0.299, 0.587, 0.114], device=x.device, dtype=x.dtype)
    return torch.einsum("nchw,c->nhw", x, weight)[:, None]


def colour_jitter(x: Tensor, view: View, draws: Draws) -> Tensor:
    """Brightness, contrast, saturation and hue in a random order: one order per batch, one strength per image."""
    if not view.jitter_p:
        return x
    out = x
    for op in draws.order(4):
        strength = view.jitter[op]
        if not strength or (op >= 2 and x.shape[1] != 3):
            continue
        if op == 3:
            out = rotate_hue(out, _uniform(len(x), -strength, strength, draws, x))
            continue
        factor = _uniform(len(x), max(0.0, 1 - strength), 1 + strength, draws, x).view(-1, 1, 1, 1)
        if op == 0:
            other = torch.zeros_like(out)
        elif op == 1:
            other = luma(out).mean((1, 2, 3), keepdim=True)
        else:
            other = luma(out)
        out = (other + factor * (out - other)).clamp(0, 1)
    return torch.where(_chosen(x, view.jitter_p, draws), out, x)


def rotate_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue in HSV space by ``turn`` (N,) full circles. ``x`` is (N, 3, H, W) in [0, 1]."""
    value, chroma_min = x.amax(1), x.amin(1)
    chroma = value - chroma_min
    safe = chroma.clamp(min=1e-8)
    r, g, b = x.unbind(1)
    hue = torch.where(value == r, ((g - b) / safe) % 6, torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    hue = (hue / 6 + turn.view(-1, 1, 1)) % 1
    # HSV -> RGB: each channel is value - chroma * trapezoid(hue).
    offsets = torch.tensor([5.0, 3.0, 1.0], device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    k = (offsets + hue[:, None] * 6) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def gaussian_blur(x: Tensor, sigma: tuple[float, float], draws: Draws) -> Tensor:
    """Blur each image with its own sigma, in pixels. Separable; padded by reflection at the border."""
    n, channels, height, width = x.shape
    widths = _uniform(n, *sigma, draws, x)
    radius = min(math.ceil(3 * sigma[1]), height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * widths[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    planes = F.pad(x, [radius] * 4, mode="reflect").reshape(1, n * channels, height + 2 * radius, -1)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=n * channels)
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=n * channels)
    return planes.reshape(n, channels, height, width)
