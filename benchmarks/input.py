"""The input pipeline for photos: processor time per image, shared memory, and the list of files.

    python benchmarks/input.py [--quick]

Compares our pipeline with the transforms of the MoCo v3 release in torchvision and Pillow: processor time for both
views of a 500 x 375 JPEG, interleaved in one process. Ours must be at least 1.2 times as fast.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms

from stabilitylab.config import resolve
from stabilitylab.data.batches import CHUNK, training_batches
from stabilitylab.data.datasets import load_data
from stabilitylab.data.listing import list_images
from stabilitylab.data.photos import views_of_file
from stabilitylab.data.views import two_views


def blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def release() -> tuple[transforms.Compose, transforms.Compose]:
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)
    first = [transforms.RandomResizedCrop(224, scale=(0.08, 1.0)), jitter, transforms.RandomGrayscale(p=0.2)]
    last = [
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    one = [transforms.RandomApply([blur], p=1.0)]
    two = [transforms.RandomApply([blur], p=0.1), transforms.RandomApply([ImageOps.solarize], p=0.2)]
    return transforms.Compose([*first, *one, *last]), transforms.Compose([*first, *two, *last])


def photos(folder: Path, count: int, split: str = "train", size: tuple[int, int] = (500, 375)) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        place = folder / split / f"c{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        low = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8))
        noise = rng.normal(0, 12, (size[1], size[0], 3))
        pixels = np.asarray(low.resize(size, Image.Resampling.BICUBIC)) + noise
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(place / f"{i}.jpg", quality=90)


def speed(folder: Path, rounds: int) -> float:
    paths = sorted((folder / "train").rglob("*.jpg"))
    one, two = release()
    views = two_views("photo", 0.08)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def theirs(path: Path, _: int) -> None:
        with path.open("rb") as file:
            image = Image.open(file).convert("RGB")
        torch.stack([one(image), two(image)])

    def ours(path: Path, i: int) -> None:
        views_of_file(path, views, 224, np.random.default_rng([0, 1, 2, i]))

    def ours_to_float(path: Path, i: int) -> None:
        """Our pipeline with the normalisation that it otherwise leaves to the device, as for training on the CPU."""
        pair = torch.stack(views_of_file(path, views, 224, np.random.default_rng([0, 1, 2, i])))
        (pair.permute(0, 3, 1, 2).float() / 255 - mean) / std

    contestants = {"torchvision": theirs, "ours": ours, "ours, normalised here": ours_to_float}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(rounds + 1):
        for name, work in contestants.items():
            started = time.process_time()
            for i, path in enumerate(paths):
                work(path, i)
            if round_number:
                times[name].append((time.process_time() - started) / len(paths) * 1000)
    for name, found in times.items():
        print(f"  {name:<24}{median(found):6.2f} ms an image")
    ratio = median(a / b for a, b in zip(times["torchvision"], times["ours, normalised here"], strict=True))
    print(f"  torchvision / ours, normalised here: {ratio:.2f}")
    return ratio


def shared_memory(folder: Path, batch: int, workers: int) -> None:
    """Peak use of /dev/shm with a consumer slower than the workers, and the memory that a batch of 4096 needs."""
    config = resolve(
        {
            "data": {"name": f"imagefolder:{folder}", "workers": workers},
            "train": {"batch_size": batch, "device": "cpu", "amp": "off"},
            "mitigation": [],
        }
    )
    batches = training_batches(config, load_data(config.data), torch.device("cpu"))
    before, most, done = used(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, used() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number, _ in enumerate(batches.iterate(0, 3)):
        time.sleep(2.0 if number == 0 else 0.0)  # let the workers prefetch as much as they can
    done.set()
    watcher.join()
    chunk = CHUNK * 2 * 224 * 224 * 3
    bound = (2 * workers + 1) * chunk
    print(f"  batch {batch}, {workers} workers: {most / 1e6:.0f} MB at most")
    print(f"  its bound, 2 x {workers} + 1 chunks of {CHUNK} images: {bound / 1e6:.0f} MB")
    print(f"  batch 4096, 8 workers: {17 * chunk / 1e9:.2f} GB (float32, a batch a worker: 79 GB)")


def used() -> int:
    found = os.statvfs("/dev/shm")
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def listing(folder: Path, classes: int, images: int) -> None:
    for c in range(classes):
        place = folder / f"n{c:08d}"
        place.mkdir()
        for i in range(images):
            (place / f"n{c:08d}_{i:06d}.JPEG").touch()
        os.utime(place, (1.7e9, 1.7e9))
    names = [f"n{c:08d}" for c in range(classes)]
    for what in ("first", "from the cache"):
        started = time.perf_counter()
        list_images(folder, names)
        print(f"  {classes * images} files, {what}: {time.perf_counter() - started:.2f} s")
    tracemalloc.start()
    found = list_images(folder, names)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    print(f"  {size / 1e6:.1f} MB for {len(found.files)} files; 1.28 million: {size / len(found.files) * 1.28:.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        photos(root, 40 if quick else 200)
        photos(root, 4, "val")
        print("both views of a 500 x 375 JPEG at 224 pixels, one core, processor time")
        ratio = speed(root, 3 if quick else 9)
        print("shared memory")
        shared_memory(root, 32 if quick else 128, 2)
        print("list of files")
        (root / "many").mkdir()
        listing(root / "many", 100, 100 if quick else 1280)
    if ratio < 1.2:
        raise SystemExit("the input pipeline is not 1.2 times as fast as torchvision's")
