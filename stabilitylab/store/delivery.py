"""The thread that writes the outbox to disk. It retries while the disk fails, follows a folder that is moved, and drops
rows that can never be written."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from pathlib import Path

import duckdb

from stabilitylab.errors import StoreWarning
from stabilitylab.store.database import one_line
from stabilitylab.store.locks import WRITER_LOCK, FolderLock
from stabilitylab.store.outbox import Batch, Loss, Outbox
from stabilitylab.store.publisher import Publisher, loss_events
from stabilitylab.store.rows import Rows

_TRANSIENT = (OSError, duckdb.IOException, duckdb.OutOfMemoryException, duckdb.FatalException, MemoryError)
"""Errors of the disk or the machine, after which writing the same rows may succeed later."""


class Delivery:
    """`run` is the target of the thread; it returns when the outbox is closing and empty."""

    def __init__(
        self,
        run_dir: Path,
        outbox: Outbox,
        publisher: Publisher,
        lock: FolderLock,
        *,
        publish_seconds: float,
        retry_seconds: float,
    ) -> None:
        self.run_dir = run_dir
        self._outbox = outbox
        self._publisher = publisher
        self._lock = lock
        self._publish_seconds = publish_seconds
        self._retry_seconds = retry_seconds
        self._warned: set[str] = set()

    def run(self) -> None:
        attempts_left = 3
        while True:
            batch = self._next_batch()
            if batch is None:
                return
            nbytes = batch.nbytes
            losses = self._outbox.take_losses()
            rows: dict[str, list[Rows]] = dict(batch.rows)
            if losses:
                rows["events"] = [*rows.get("events", []), *loss_events(losses)]
            self.follow()
            try:
                self._publisher.publish(rows)
            except Exception as error:
                if not isinstance(error, _TRANSIENT) and self._publish_apart(batch, losses):
                    self._outbox.finish(batch, nbytes)
                    continue
                self._outbox.restore_losses(losses)
                self._outbox.give_back(batch)
                self.warn(
                    "write",
                    f"cannot write to {self.run_dir}: {one_line(error)}; training continues and rows wait in memory",
                )
                if self._outbox.closing:
                    attempts_left -= 1
                    if attempts_left == 0:
                        return
                with self._outbox.changed:
                    self._outbox.changed.wait(0.2 if self._outbox.closing else self._retry_seconds)
            else:
                self._outbox.finish(batch, nbytes)
                with contextlib.suppress(*_TRANSIENT, duckdb.Error):  # optional; retried with the next batch
                    self._publisher.gather()

    def _publish_apart(self, batch: Batch, losses: Mapping[str, Loss]) -> bool:
        """Publish a batch part by part after a permanent error, so that rows that cannot be written do not block the
        others. Returns False on a transient error; the unpublished parts then stay in the batch."""
        for table in list(batch.rows):
            while batch.rows[table]:
                part = batch.rows[table][0]
                try:
                    self._publisher.publish({table: [part]})
                except _TRANSIENT:
                    return False
                except Exception as error:
                    first, last = part.span()
                    self._outbox.restore_losses({table: Loss(part.count, first or 0, last or 0)})
                    self.warn("refused", f"{part.count} rows of {table} cannot be stored: {one_line(error)}")
                batch.rows[table].pop(0)
            del batch.rows[table]
        self._outbox.restore_losses(dict(losses))
        return True

    def _next_batch(self) -> Batch | None:
        outbox = self._outbox
        with outbox.changed:
            while True:
                batch = outbox.next()
                if batch is not None or outbox.closing:
                    return batch
                outbox.changed.wait(self._publish_seconds / 2)
                if outbox.age() >= self._publish_seconds:
                    outbox.seal()

    def follow(self) -> None:
        """Continue in the new location if the folder was moved."""
        lock = self._publisher.folder / WRITER_LOCK
        if self._lock.guards(lock):
            return
        moved = self._lock.where()
        if moved is not None and moved.name == WRITER_LOCK:
            self.run_dir = moved.parent.parent
            self._publisher.folder = moved.parent

    def warn(self, topic: str, text: str) -> None:
        if topic in self._warned:
            return
        self._warned.add(topic)
        # With warnings as errors, an exception here would stop training or the thread.
        with contextlib.suppress(StoreWarning):
            warnings.warn(text, StoreWarning, stacklevel=3)
