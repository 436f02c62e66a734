"""The bounded queue between training, which must never block, and the writer thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

from stabilitylab.store.rows import Rows


@dataclass
class Batch:
    """The rows of one publish by table, in order of arrival."""

    ticket: int
    rows: dict[str, list[Rows]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for parts in self.rows.values() for part in parts)


@dataclass
class Loss:
    """Rows of one table that were dropped."""

    rows: int
    first: int
    last: int


class Outbox:
    """Collects rows, seals them into batches, and drops the oldest rows beyond `max_bytes`.

    layer_stats rows are dropped first; evals and events are few and irreplaceable.
    """

    def __init__(self, max_bytes: int) -> None:
        self.changed = threading.Condition()
        self.closing = False
        self.attempts = 0  # number of failed attempts
        self.done = 0  # ticket of the last batch on disk
        self.losses: dict[str, Loss] = {}
        self._max_bytes = max_bytes
        self._nbytes = 0
        self._ticket = 0
        self._open = Batch(ticket=1)
        self._opened_at = 0.0
        self._sealed: deque[Batch] = deque()

    def add(self, rows: Rows) -> bool:
        """Add `rows`. Returns True if rows had to be dropped."""
        with self.changed:
            if not self._open.rows:
                self._opened_at = time.monotonic()
            self._open.rows.setdefault(rows.table, []).append(rows)
            self._nbytes += rows.nbytes
            dropped = False
            while self._nbytes > self._max_bytes and self._drop_one():
                dropped = True
            return dropped

    def seal(self) -> int:
        """Close the open batch and wake the writer. Returns the ticket of the last batch."""
        with self.changed:
            if self._open.rows:
                self._ticket = self._open.ticket
                self._sealed.append(self._open)
                self._open = Batch(ticket=self._ticket + 1)
            self.changed.notify_all()
            return self._ticket

    def waiting(self) -> int:
        """Number of sealed batches that are not on disk yet."""
        return len(self._sealed)

    def newest(self) -> int:
        """The last iteration in the outbox; 0 if it is empty."""
        with self.changed:
            batches = [*self._sealed, self._open]
            spans = [part.span()[1] for batch in batches for parts in batch.rows.values() for part in parts]
        return max((last for last in spans if last is not None), default=0)

    def age(self) -> float:
        """Seconds since the first row was added to the open batch; 0 if it is empty."""
        return time.monotonic() - self._opened_at if self._open.rows else 0.0

    def next(self) -> Batch | None:
        """Take the oldest sealed batch. It counts towards `max_bytes` until `finish` or `give_back`."""
        return self._sealed.popleft() if self._sealed else None

    def finish(self, batch: Batch, nbytes: int) -> None:
        with self.changed:
            self._nbytes -= nbytes
            self.done = batch.ticket
            self.changed.notify_all()

    def give_back(self, batch: Batch) -> None:
        with self.changed:
            self._sealed.appendleft(batch)
            self.attempts += 1
            self.changed.notify_all()

    def wait_for(self, ticket: int, timeout: float) -> bool:
        """Wait until `ticket` is on disk. Returns False if an attempt failed or the timeout expired before."""
        with self.changed:
            before = self.attempts
            self.changed.wait_for(lambda: self.done >= ticket or self.attempts > before, timeout)
            return self.done >= ticket

    def lose_all(self) -> None:
        """Drop all rows and count them as lost."""
        with self.changed:
            while self._drop_one():
                pass

    def take_losses(self) -> dict[str, Loss]:
        with self.changed:
            losses, self.losses = self.losses, {}
            return losses

    def restore_losses(self, losses: dict[str, Loss]) -> None:
        with self.changed:
            for table, loss in losses.items():
                self._count(table, loss)

    def _drop_one(self) -> bool:
        batches = [*self._sealed, self._open]
        for wanted in (("layer_stats",), ("scalars", "iterations"), ("evals", "events", "layers")):
            for batch in batches:
                for table in wanted:
                    if batch.rows.get(table):
                        part = batch.rows[table].pop(0)
                        if not batch.rows[table]:
                            del batch.rows[table]
                        self._nbytes -= part.nbytes
                        first, last = part.span()
                        self._count(table, Loss(part.count, first or 0, last or 0))
                        return True
        return False

    def _count(self, table: str, loss: Loss) -> None:
        known = self.losses.get(table)
        if known is None:
            self.losses[table] = loss
        else:
            self.losses[table] = Loss(known.rows + loss.rows, min(known.first, loss.first), max(known.last, loss.last))
