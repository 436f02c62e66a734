"""The files of an image folder: listed once, stored compactly and cached between runs."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
_FORMAT = 1
_SETTLED = 2_000_000_000  # nanoseconds since the last change, before a listing is cached


class Files(Sequence[Path]):
    """Paths below one folder. All names share one byte string, so a million paths take 40 MB."""

    def __init__(
        self, root: Path, names: bytes, ends: NDArray[np.int64], index: NDArray[np.int64] | None = None
    ) -> None:
        self.root, self._names, self._ends = root, names, ends
        self._index = index

    @classmethod
    def of(cls, root: Path, names: Sequence[str]) -> Files:
        """From names relative to ``root``."""
        encoded = [os.fsencode(name) for name in names]
        return cls(root, b"".join(encoded), np.cumsum([len(e) for e in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends) if self._index is None else len(self._index)

    @overload
    def __getitem__(self, i: int) -> Path: ...
    @overload
    def __getitem__(self, i: slice) -> Files: ...
    def __getitem__(self, i: int | slice) -> Path | Files:
        if isinstance(i, slice):
            return self.subset(np.arange(len(self))[i])
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        at = int(self._index[i]) if self._index is not None else i % len(self)
        start = int(self._ends[at - 1]) if at else 0
        return self.root / os.fsdecode(self._names[start : int(self._ends[at])])

    def __iter__(self) -> Iterator[Path]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def subset(self, index: NDArray[np.int64]) -> Files:
        """The files of ``index``, in that order; the names are shared."""
        chosen = index if self._index is None else self._index[index]
        return Files(self.root, self._names, self._ends, np.asarray(chosen, dtype=np.int64))


@dataclass(frozen=True)
class Listing:
    """The images of a folder of class folders. The files of each class are consecutive and sorted by name."""

    files: Files
    counts: NDArray[np.int64]  # images in each class


def list_images(root: Path, classes: Sequence[str]) -> Listing:
    """The images in each of ``classes``, at any depth. The listing is cached and reused until one of the folders
    changes."""
    cache = _cache_file(root)
    known = _load(cache, root, classes)
    if known is not None:
        return known
    started = time.time_ns()
    names: list[str] = []
    counts: list[int] = []
    folders: dict[str, int] = {}
    for name in classes:
        images = sorted(_walk(root, name, folders), key=lambda relative: relative.split("/"))
        names += images
        counts.append(len(images))
    listing = Listing(Files.of(root, names), np.array(counts, dtype=np.int64))
    # A folder that has just changed may change again without a new timestamp: the file system's clock is coarse.
    if not folders or max(folders.values()) < started - _SETTLED:
        _save(cache, listing, classes, folders)
    return listing


def _walk(root: Path, folder: str, folders: dict[str, int]) -> Iterator[str]:
    """Yield the images below ``root/folder``, relative to ``root``. Adds each folder's modification time to
    ``folders``."""
    folders[folder] = (root / folder).stat().st_mtime_ns
    with os.scandir(root / folder) as entries:
        for entry in entries:
            relative = f"{folder}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, relative, folders)
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                yield relative


def _cache_file(root: Path) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:24]
    return Path(base) / "stabilitylab" / f"{digest}.npz"


def _load(cache: Path, root: Path, classes: Sequence[str]) -> Listing | None:
    """The cached listing, or None if it has other classes, a folder has changed, or the cache is damaged."""
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if int(stored["format"]) != _FORMAT or stored["classes"].tolist() != list(classes):
                return None
            times = [(root / name).stat().st_mtime_ns for name in stored["folders"].tolist()]
            if times != stored["times"].tolist():
                return None
            files = Files(root, stored["names"].tobytes(), stored["ends"])
            return Listing(files, stored["counts"])
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _save(cache: Path, listing: Listing, classes: Sequence[str], folders: dict[str, int]) -> None:
    """Write the cache through a temporary file, since several processes may list one folder. A failure to write is
    ignored: the cache is optional."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, suffix=".tmp", delete=False) as file:
            np.savez(
                file,
                format=_FORMAT,
                classes=np.array(classes),
                folders=np.array(list(folders)),
                times=np.array(list(folders.values()), dtype=np.int64),
                names=np.frombuffer(listing.files._names, np.uint8),
                ends=listing.files._ends,
                counts=listing.counts,
            )
        Path(file.name).replace(cache)
    except (OSError, UnicodeError):
        return
