"""The writer lock of a run: an flock, which the kernel releases whenever its holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import time
import weakref
from pathlib import Path

from stabilitylab.errors import RunBusy, StoreError

WRITER_LOCK = "writer.lock"
COMPACT_LOCK = "compact.lock"
_F_GETPATH = 50  # macOS: the path of an open file

_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """A held lock file. It is released by `release` or when the process dies."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        _held.add(self)

    def guards(self, path: Path) -> bool:
        """Whether this lock is on the file `path`."""
        return self._fd is not None and _same_file(self._fd, path)

    def where(self) -> Path | None:
        """The current path of the lock file, even if its folder was moved. None if it is gone or the system cannot
        tell."""
        if self._fd is None:
            return None
        try:
            if sys.platform == "darwin":
                raw = fcntl.fcntl(self._fd, _F_GETPATH, bytes(1024)).rstrip(b"\0")
            else:
                raw = os.fsencode(Path(f"/proc/self/fd/{self._fd}").readlink())
            path = Path(os.fsdecode(raw))
            return path if _same_file(self._fd, path) else None
        except OSError:
            return None

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _forget_in_child() -> None:
    # A forked DataLoader worker inherits the lock and would keep it after the trainer is killed.
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_forget_in_child)


def try_lock(path: Path, *, shared: bool = False, wait_seconds: float = 0.0) -> FolderLock | None:
    """The lock on `path`, or None if another process holds it.

    If the lock file was removed while waiting, a new one is created, because the old one no longer locks anything.
    Raises OSError if the folder is missing or read-only, or the file system does not support locks.
    """
    deadline = time.monotonic() + wait_seconds
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    while True:
        # A shared lock needs no write access, so readers without write permission can take it.
        fd = os.open(path, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, mode)
            if _same_file(fd, path):
                return FolderLock(fd)
            os.close(fd)
            if shared:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            continue
        except BlockingIOError:
            os.close(fd)
        except OSError:
            _close_quietly(fd)
            raise
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.02)


def is_held(path: Path) -> bool:
    """Whether a living process holds the exclusive lock on `path`."""
    try:
        lock = try_lock(path, shared=True)
    except FileNotFoundError:
        return False
    except OSError:
        # Unknown: no permission, or a file system without locks. Assuming a live writer is the safe answer.
        return True
    if lock is None:
        return True
    lock.release()
    return False


def _same_file(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _close_quietly(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


def lock_for_writing(folder: Path) -> FolderLock:
    """The exclusive lock on the segments `folder` of a run, which is created if it does not exist.

    Raises RunBusy if another process is writing the run, StoreError if the folder cannot be written.
    """
    path = folder / WRITER_LOCK
    deadline = time.monotonic() + 120
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock = try_lock(path, wait_seconds=0.5)
            except FileNotFoundError:
                continue  # a compaction has just removed the folder
            if lock is not None:
                return lock
            # A reader that merges a crashed run holds a shared lock and will finish; a writer holds it exclusively.
            if is_held(path) or time.monotonic() > deadline:
                raise RunBusy(f"{folder.parent} is being written by another process; wait for it or stop it")
    except OSError as error:
        raise StoreError(
            f"cannot write to {folder.parent}: {error.strerror or error}; choose another folder with --runs-dir"
        ) from None
