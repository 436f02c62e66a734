"""Image files, decoded and augmented one by one with Pillow in 8 bits, distributed as in `stabilitylab.data.views`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageFilter
from torch import Tensor

from stabilitylab.data.views import CROP_TRIALS, View
from stabilitylab.errors import ConfigError

Box = tuple[int, int, int, int]
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises
_LEVELS = np.arange(256, dtype=np.float32)
_SOLARIZE = [x if x < 128 else 255 - x for x in range(256)] * 3
_LUMA = np.array([0.299, 0.587, 0.114])


def cannot_decode(path: Path, error: object) -> ConfigError:
    return ConfigError(
        f"cannot decode image {path}: {error}; delete or repair it, or skip unreadable images with "
        "--set data.on_bad_image=skip"
    )


def views_of_file(path: Path, views: tuple[View, ...], size: int, rng: Generator) -> list[Tensor]:
    """One random view of an image file for each of ``views``: (size, size, 3) uint8 tensors. Raises ConfigError if the
    file cannot be decoded.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if every crop then still has at least as many pixels as its view.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            boxes = [crop_box(height, width, view, rng) for view in views]
            sizes = [view.size or size for view in views]
            needed = max(s / min(box[2], box[3]) for s, box in zip(sizes, boxes, strict=True))
            if needed <= 0.5 and image.format == "JPEG":
                image.draft(image.mode, (math.ceil(width * needed), math.ceil(height * needed)))
            photo = to_rgb(image)
    except _UNREADABLE as error:
        raise cannot_decode(path, error) from None
    shrunk = photo.width / width
    return [
        torch.from_numpy(np.array(augment_photo(photo, box, view, s, rng, shrunk)))
        for box, view, s in zip(boxes, views, sizes, strict=True)
    ]


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image to 8-bit RGB. 16-bit grey images are scaled to 8 bits; Pillow would clip them at 255."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its values do not fit in 16 bits; convert it to 8 or 16 bits")
        image = Image.fromarray((values // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("it contains floating-point values of unknown range; convert it to 8 or 16 bits")
    return image.convert("RGB")


def read_photo(path: Path) -> Image.Image:
    """Read an image file as 8-bit RGB. Raises ConfigError if it cannot be decoded."""
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except _UNREADABLE as error:
        raise cannot_decode(path, error) from None


def centre_crop(path: Path, size: int) -> Tensor:
    """Resize the shorter side to 8/7 of ``size`` (256 for 224), then crop the centre: (3, size, size) uint8."""
    photo = read_photo(path)
    scale = size * 8 / 7 / min(photo.size)
    width, height = (max(size, round(side * scale)) for side in photo.size)
    left, top = (width - size) // 2, (height - size) // 2
    photo = photo.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)


def crop_box(height: int, width: int, view: View, rng: Generator) -> Box:
    """One box (top, left, height, width), drawn from the distribution of `stabilitylab.data.views.crop_boxes`."""
    low, high = math.log(view.ratio[0]), math.log(view.ratio[1])
    for _ in range(CROP_TRIALS):
        area = height * width * (view.crop[0] + (view.crop[1] - view.crop[0]) * rng.random())
        ratio = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w
    h, w = min(height, round(width / view.ratio[0])), min(width, round(height * view.ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def augment_photo(
    photo: Image.Image, box: Box, view: View, size: int, rng: Generator, shrunk: float = 1.0
) -> Image.Image:
    """One view: crop, resize, then the random operations of ``view``; only those drawn are computed. ``box`` is in
    pixels of the full-size image; ``shrunk`` is the scale at which ``photo`` was decoded."""
    top, left, h, w = box
    if shrunk == 1:  # crop before resizing, as torchvision does, so that no pixel outside the crop contributes
        out = photo.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BILINEAR)
    else:
        right, bottom = min((left + w) * shrunk, photo.width), min((top + h) * shrunk, photo.height)
        part = (left * shrunk, top * shrunk, right, bottom)
        out = photo.resize((size, size), Image.Resampling.BILINEAR, box=part)
    if rng.random() < view.flip_p:
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < view.jitter_p:
        out = jittered(out, view.jitter, rng)
    if rng.random() < view.grey_p:
        out = out.convert("L").convert("RGB")
    if rng.random() < view.blur_p:
        low, high = view.blur_sigma
        out = out.filter(ImageFilter.GaussianBlur(low + (high - low) * rng.random()))
    if rng.random() < view.solarize_p:
        out = out.point(_SOLARIZE)
    return out


def jittered(photo: Image.Image, strengths: tuple[float, float, float, float], rng: Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue in a random order."""
    for op in rng.permutation(4):
        strength = strengths[op]
        if not strength:
            continue
        if op == 3:
            photo = turned_hue(photo, strength * (2 * rng.random() - 1))
            continue
        low = max(0.0, 1 - strength)
        factor = low + (1 + strength - low) * rng.random()
        if op == 2:
            photo = photo.convert("RGB", _saturation(factor))
        else:
            level = 0.0 if op == 0 else _mean_luma(photo)
            photo = photo.point(_stretched(level, factor))
    return photo


def turned_hue(photo: Image.Image, turn: float) -> Image.Image:
    """Rotate the hue by ``turn`` full circles, |turn| <= 0.2: `stabilitylab.data.views.rotate_hue`, rounded to 8 bits.
    Pillow's conversion to HSV and back takes twice as long and rounds three times."""
    pixels = np.asarray(photo)
    r, g, b = (np.ascontiguousarray(pixels[..., channel]) for channel in range(3))
    value = np.maximum(np.maximum(r, g), b)
    chroma = value - np.minimum(np.minimum(r, g), b)
    red, green = r == value, g == value
    r16, g16, b16 = (plane.astype(np.int16) for plane in (r, g, b))
    difference = r16 - g16
    np.copyto(difference, b16 - r16, where=green)
    np.copyto(difference, g16 - b16, where=red)
    hue = difference / np.maximum(chroma, 1).astype(np.float32)  # in sixths of a circle
    start = np.full(hue.shape, 4 + 6 * turn, dtype=np.float32)
    start[green] = 2 + 6 * turn
    start[red] = 6 * turn
    hue += start
    rounded, depth = value.astype(np.float32) + np.float32(0.5), chroma.astype(np.float32)
    out = np.empty_like(pixels)
    for channel, offset in enumerate((5, 3, 1)):
        # channel = value - chroma * trapezoid(distance to the peak). Folding at 3 replaces wrapping round the circle:
        # the two agree wherever the trapezoid is not 0.
        x = hue + np.float32(offset - 5)
        np.abs(x, out=x)
        x -= 3
        np.abs(x, out=x)
        np.subtract(2, x, out=x)
        np.clip(x, 0, 1, out=x)
        x *= depth
        np.subtract(rounded, x, out=x)
        out[..., channel] = x
    return Image.fromarray(out)


def _stretched(level: float, factor: float) -> list[int]:
    """Lookup table of level + factor * (x - level), repeated for the three channels."""
    table = np.clip(np.rint(level + factor * (_LEVELS - level)), 0, 255).astype(int).tolist()
    return list(table * 3)


def _saturation(factor: float) -> tuple[float, ...]:
    """luma + factor * (x - luma) as the 3 x 4 matrix that Pillow expects."""
    matrix = np.zeros((3, 4))
    matrix[:, :3] = (1 - factor) * _LUMA + factor * np.eye(3)
    return tuple(matrix.flatten().tolist())


def _mean_luma(photo: Image.Image) -> float:
    counts = np.array(photo.convert("L").histogram())
    return float((counts * _LEVELS).sum() / counts.sum())
