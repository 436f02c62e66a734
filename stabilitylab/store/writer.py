"""Write a run while it trains: rows are buffered in memory and written to disk in a separate thread."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import numpy as np

from stabilitylab.errors import RunExists, StoreError
from stabilitylab.store.compaction import SEGMENTS, compact
from stabilitylab.store.database import DATABASE, check_path, one_line
from stabilitylab.store.delivery import Delivery
from stabilitylab.store.locks import FolderLock, lock_for_writing
from stabilitylab.store.manifest import MANIFEST, Manifest, segment_table
from stabilitylab.store.opening import first_manifest, reopen
from stabilitylab.store.outbox import Loss, Outbox
from stabilitylab.store.publisher import Publisher, loss_events
from stabilitylab.store.rows import Rows, make_rows
from stabilitylab.store.schema import STATUSES, LayerRow

_NEVER = 2**31 - 1  # an iteration that no run reaches
_BACKLOG = 4  # number of waiting flushes that is reported
_WRITE_ERRORS = (OSError, duckdb.Error, MemoryError, StoreError)


class RunWriter:
    """Records one run. Create it with `create`, `resume` or `annotate`; use it as a context manager.

    Training never waits for the disk and never fails because of it. Rows that cannot be written stay in memory, up to
    `max_buffer_bytes`, and are retried; beyond that, the oldest rows are dropped, counted, and reported with an event
    `rows_lost` and a StoreWarning. Rows that were not published for `publish_seconds` are published automatically.
    """

    def __init__(
        self,
        run_dir: Path,
        publisher: Publisher,
        lock: FolderLock,
        *,
        max_buffer_bytes: int = 256 << 20,
        publish_seconds: float = 30.0,
        retry_seconds: float = 2.0,
    ) -> None:
        self._publisher = publisher
        self._lock = lock
        self._outbox = Outbox(max_buffer_bytes)
        self._delivery = Delivery(
            run_dir, self._outbox, publisher, lock, publish_seconds=publish_seconds, retry_seconds=retry_seconds
        )
        self._warn = self._delivery.warn
        self._behind = False
        self._closed = False
        self._status_before = ""  # set by `annotate`: the status to keep
        self.unwritten: list[str] = []  # after `close`: one line for each kind of data that is not in run.duckdb
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._delivery.run, name=f"store {run_dir.name}", daemon=True)
        self._thread.start()
        self._at_exit = _close_at_exit(self)

    @property
    def run_dir(self) -> Path:
        """The current path of the run's folder, even if it was moved."""
        return self._delivery.run_dir

    @classmethod
    def create(
        cls,
        run_dir: Path,
        *,
        config: Mapping[str, Any],
        meta: Mapping[str, str],
        layers: Sequence[LayerRow],
        **options: Any,
    ) -> RunWriter:
        """Start recording into `run_dir`, created by `claim_run`.

        `meta` adds to the keys that the store writes, or overrides them. Readers can open the run when this returns.
        Raises RunExists if the folder already contains a run, StoreError if it cannot be written.
        """
        run_dir = check_path(Path(run_dir))  # absolute, independent of a later chdir
        folder = run_dir / SEGMENTS
        left = any(segment_table(path.name) for path in folder.glob("*.parquet"))
        if left or (run_dir / DATABASE).exists() or (folder / MANIFEST).exists():
            raise RunExists(f"{run_dir} already contains a run; choose another name or resume it")
        manifest = first_manifest(run_dir, config, meta)
        lock = lock_for_writing(folder)
        return cls._begin(run_dir, manifest, layers, lock, options)

    @classmethod
    def resume(
        cls,
        run_dir: Path,
        at_iteration: int,
        *,
        config: Mapping[str, Any] | None = None,
        meta: Mapping[str, str] | None = None,
        layers: Sequence[LayerRow] | None = None,
        **options: Any,
    ) -> RunWriter:
        """Resume a run that has ended at `at_iteration`, the next iteration to run.

        Rows at or after it are dropped, except events. `config`, `meta` and `layers`, if given, replace those of the
        run. Raises RunBusy if the run is being written, RunBroken if there is no run.
        """
        run_dir = check_path(Path(run_dir))  # absolute, independent of a later chdir
        manifest, lock, was = reopen(run_dir, at_iteration, config, meta or {})
        writer = cls._begin(run_dir, manifest, layers, lock, options)
        writer.event(at_iteration, "resume", f"resumed at iteration {at_iteration}; it was {was}")
        writer.publish(wait=True)
        return writer

    @classmethod
    def annotate(cls, run_dir: Path, **options: Any) -> RunWriter:
        """Add rows to a run that has ended, such as a later evaluation. Nothing is dropped, and ``close`` keeps the
        status. Raises RunBusy if the run is being written, RunBroken if there is no run."""
        run_dir = check_path(Path(run_dir))  # absolute, independent of a later chdir
        manifest, lock, was = reopen(run_dir, _NEVER, None, {})
        writer = cls._begin(run_dir, manifest, None, lock, options)
        writer._status_before = was
        return writer

    @classmethod
    def _begin(
        cls,
        run_dir: Path,
        manifest: Manifest,
        layers: Sequence[LayerRow] | None,
        lock: FolderLock,
        options: Mapping[str, Any],
    ) -> RunWriter:
        publisher = Publisher(run_dir / SEGMENTS, manifest)
        try:
            publisher.start(layers)
            return cls(run_dir, publisher, lock, **options)
        except _WRITE_ERRORS as error:
            publisher.withdraw()
            lock.release()
            raise StoreError(f"cannot write to {run_dir}: {one_line(error)}; make it writable") from None
        except BaseException:
            publisher.withdraw()
            lock.release()
            raise

    def append(self, table: str, columns: Mapping[str, np.ndarray | Sequence[Any] | Any]) -> None:
        """Add rows to `table`: name -> 1-D values of equal length, or a scalar for all rows.

        The values are copied. None, masked entries and absent columns become NULL; NaN stays NaN. Raises ValueError
        for columns that do not fit the table, StoreError after `close`.
        """
        if self._closed:
            raise StoreError(f"the writer of {self.run_dir} is closed; resume the run to add to it")
        rows = make_rows(table, columns)
        self._add(rows)
        for note in rows.notes:
            at = rows.span()[0] or 0
            self._add(make_rows("events", {"iteration": [at], "kind": ["out-of-range"], "detail": [note]}))
            self._warn(f"range {table}", f"{self.run_dir}: {note}")

    def event(self, iteration: int, kind: str, detail: str = "") -> None:
        """Record an event at `iteration`."""
        self.append("events", {"iteration": [iteration], "kind": [kind], "detail": [detail]})

    def publish(self, wait: bool = False) -> None:
        """Queue all appended rows for writing, as one segment per table.

        With `wait`, returns when they are durable and visible to readers, or when an attempt to write has failed.
        """
        self._note_backlog()
        ticket = self._outbox.seal()
        if wait and self._thread.is_alive():
            self._outbox.wait_for(ticket, timeout=60.0)

    def close(self, status: str = "finished") -> None:
        """Write the remaining rows, merge everything into run.duckdb and remove the segments. Idempotent.

        Does not raise if the disk fails: rows that were written stay in segments, and the next `open_run` merges them.
        Rows that could not be written are reported with a StoreWarning and in `unwritten`.
        """
        if status not in STATUSES or status == "running":
            raise ValueError(f"status must be finished, stopped or crashed, not {status!r}")
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        status = self._status_before or status
        atexit.unregister(self._at_exit)
        with self._outbox.changed:
            self._outbox.closing = True
        self._outbox.seal()
        try:
            self._thread.join()
            self._finish(status)
        finally:
            self._publisher.close()
            self._lock.release()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("finished")
        elif issubclass(kind, Exception):
            self.close("crashed")
        else:
            self.close("stopped")

    def _finish(self, status: str) -> None:
        self._outbox.lose_all()
        losses = self._outbox.take_losses()
        self._delivery.follow()
        try:
            if losses:
                self._warn_lost(losses)
                self._publisher.publish({"events": loss_events(losses)})
            self._publisher.set_status(status)
            compact(self.run_dir, self._publisher.manifest, [])
        except _WRITE_ERRORS as error:
            kept = (self.run_dir / SEGMENTS / MANIFEST).exists()
            what = "they are kept and will be merged when the run is opened" if kept else "its folder is gone"
            text = f"could not merge the segments of {self.run_dir}: {one_line(error)}; {what}"
            self.unwritten.append(text)
            self._warn("merge", text)

    def _add(self, rows: Rows) -> None:
        if rows.count and self._outbox.add(rows):
            self._warn("lost", f"{self.run_dir} cannot be written fast enough: the oldest rows are being dropped")

    def _note_backlog(self) -> None:
        """Record an event when the disk falls behind, once until it has caught up."""
        waiting = self._outbox.waiting()
        if waiting >= _BACKLOG and not self._behind:
            self.event(self._outbox.newest(), "backlog", f"the disk is slow: {waiting} flushes wait in memory")
        self._behind = waiting >= _BACKLOG or (self._behind and waiting > 0)

    def _warn_lost(self, losses: Mapping[str, Loss]) -> None:
        rows = sum(loss.rows for loss in losses.values())
        self.unwritten.append(f"{rows} rows could not be written")
        self._warn("lost", f"{rows} rows of {self.run_dir} could not be written and are lost")


def _close_at_exit(writer: RunWriter) -> Any:
    # A weak reference, so that an unused writer can still be garbage-collected.
    reference = weakref.ref(writer)

    def close() -> None:
        forgotten = reference()
        if forgotten is not None:
            forgotten.close("stopped")

    atexit.register(close)
    return close
