"""The two views of MoCo v3 (PAPER, Implementation), for a whole batch at once on its own device.

Every random number is drawn on the CPU from one generator, so a batch's views depend on the seed alone and
not on the device, nor on how many processes share the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from stabilitylab.config import Config


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
    size: int | None = None  # pixels; None: the run's


class Draws:
    """Random numbers for a batch of which only the rows ``start`` to ``start`` + n are at hand: every process of
    a training draws for the whole batch, so that its images get the views they would get in one process."""

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
    """A CPU tensor on ``device``. CUDA is not waited for: only a copy from pinned memory does not."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)


def two_views(kind: str, crop_min: float) -> tuple[View, View]:
    """``photo``: the paper's asymmetric pair. ``grey``: crops and light only, since a mirrored digit is no digit."""
    crop = (crop_min, 1.0)
    if kind == "photo":
        return View(crop=crop, blur_p=1.0), View(crop=crop, blur_p=0.1, solarize_p=0.2)
    grey = View(crop=crop, jitter=(0.4, 0.4, 0.0, 0.0), grey_p=0.0, flip_p=0.0)
    return grey, grey


def views_of(config: Config) -> tuple[View, ...]:
    """The two views of every method, then SwAV's local crops if there are any."""
    data, model = config.data, config.model
    views = two_views(data.views, data.crop_min)
    half = max(model.img_size // 2 // model.patch_size, 1) * model.patch_size
    local = replace(views[1], crop=data.local_crop, size=data.local_size or half)
    return (*views, *[local] * data.local_crops)


def augment(images: Tensor, view: View, size: int, draws: Draws, *, antialias: bool = False) -> Tensor:
    """One random view of each image: (N, C, H, W) in [0, 1] -> (N, C, size, size) in [0, 1]. ``antialias``: for one
    image at a time, as large as a photo is."""
    x = random_resized_crop(images, view, size, draws, antialias=antialias)
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


def random_resized_crop(x: Tensor, view: View, size: int, draws: Draws, *, antialias: bool = False) -> Tensor:
    """Crop an area fraction in ``view.crop`` with a log-uniform aspect ratio in pixels, resize bilinearly, maybe
    mirror. ``antialias`` takes one image, and cuts at whole pixels as torchvision does."""
    n = len(x)
    area = _uniform(n, *view.crop, draws, x)
    ratio = torch.exp(_uniform(n, math.log(view.ratio[0]), math.log(view.ratio[1]), draws, x))
    ratio = ratio * (x.shape[2] / x.shape[3])  # of pixels -> of shares of the image's sides
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    # Centres in [-1, 1]; the crop stays inside the image.
    cx = (1 - width) * _uniform(n, -1, 1, draws, x)
    cy = (1 - height) * _uniform(n, -1, 1, draws, x)
    mirror = torch.where(_chosen(x, view.flip_p, draws).flatten(), -1.0, 1.0)
    if antialias:
        (image,) = x
        top, bottom = _pixels(cy.item(), height.item(), image.shape[1])
        left, right = _pixels(cx.item(), width.item(), image.shape[2])
        cut = image[None, :, top:bottom, left:right]
        cut = F.interpolate(cut, (size, size), mode="bilinear", align_corners=False, antialias=True)
        return cut.flip(3) if mirror.item() < 0 else cut
    zero = torch.zeros_like(cx)
    theta = torch.stack([torch.stack([width * mirror, zero, cx], 1), torch.stack([zero, height, cy], 1)], 1)
    grid = F.affine_grid(theta, [n, x.shape[1], size, size], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _pixels(centre: float, share: float, side: int) -> tuple[int, int]:
    """A stretch given by its centre in [-1, 1] and its share of the side -> first pixel, one past the last."""
    length = max(1, round(share * side))
    start = min(max(round((centre + 1) / 2 * side - length / 2), 0), side - length)
    return start, start + length


def luma(x: Tensor) -> Tensor:
    """ITU-R 601 grey, (N, 3, H, W) -> (N, 1, H, W)."""
    if x.shape[1] == 1:
        return x
    weight = torch.tensor([0.299, 0.587, 0.114], device=x.device, dtype=x.dtype)
    return torch.einsum("nchw,c->nhw", x, weight)[:, None]


def colour_jitter(x: Tensor, view: View, draws: Draws) -> Tensor:
    """Brightness, contrast, saturation and hue in a random order, one order a batch, one strength an image."""
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
    """Turn the hue in HSV space by ``turn`` (N,) full circles. (N, 3, H, W) in [0, 1]."""
    value, chroma_min = x.amax(1), x.amin(1)
    chroma = value - chroma_min
    safe = chroma.clamp(min=1e-8)
    r, g, b = x.unbind(1)
    hue = torch.where(value == r, ((g - b) / safe) % 6, torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    hue = (hue / 6 + turn.view(-1, 1, 1)) % 1
    # HSV -> RGB: each channel is the value less chroma times a trapezoid in the hue.
    offsets = torch.tensor([5.0, 3.0, 1.0], device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    k = (offsets + hue[:, None] * 6) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def gaussian_blur(x: Tensor, sigma: tuple[float, float], draws: Draws) -> Tensor:
    """Blur each image with its own sigma, in pixels; separable, reflected at the border."""
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
