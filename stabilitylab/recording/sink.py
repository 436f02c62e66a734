"""Where recorded rows go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Sink(Protocol):
    """Where flushed rows go; `stabilitylab.store.writer.RunWriter` is one."""

    def append(self, table: str, columns: Mapping[str, object]) -> None: ...
    def event(self, iteration: int, kind: str, detail: str) -> None: ...
    def publish(self, wait: bool = False) -> None: ...


class NullSink:
    """Keeps nothing: for the processes of a training that do not record."""

    def append(self, table: str, columns: Mapping[str, object]) -> None: ...
    def event(self, iteration: int, kind: str, detail: str) -> None: ...
    def publish(self, wait: bool = False) -> None: ...
