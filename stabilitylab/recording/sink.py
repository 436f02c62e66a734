"""The destination of recorded rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Sink(Protocol):
    """The destination of flushed rows, for example a `stabilitylab.store.writer.RunWriter`."""

    def append(self, table: str, columns: Mapping[str, object]) -> None: ...
    def event(self, iteration: int, kind: str, detail: str) -> None: ...
    def publish(self, wait: bool = False) -> None: ...


class NullSink:
    """Discards everything: for processes that do not record."""

    def append(self, table: str, columns: Mapping[str, object]) -> None: ...
    def event(self, iteration: int, kind: str, detail: str) -> None: ...
    def publish(self, wait: bool = False) -> None: ...
