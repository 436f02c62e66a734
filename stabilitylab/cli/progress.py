"""Progress of training: a live bar in a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from stabilitylab.cli.terminal import console

if TYPE_CHECKING:
    from stabilitylab.train.trainer import Progress as State

_PLAIN_EVERY = 15.0  # seconds between plain lines
_SHORTEST = 1.0  # seconds from which a rate is shown: reports that arrive together say nothing about the speed


class TrainingProgress:
    """Shows loss, kNN accuracy, iterations per second and the time left, for one or several runs."""

    def __init__(self) -> None:
        self.console = console(stderr=True)
        self._live = self.console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self._live,
        )
        self._tasks: dict[str, TaskID] = {}
        self._loss: dict[str, float] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._printed: dict[str, float] = {}

    def __enter__(self) -> TrainingProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def update(self, state: State, run: str = "training") -> None:
        now = time.monotonic()
        first, at = self._started.setdefault(run, (now, state.iteration))
        if state.loss is not None:
            self._loss[run] = state.loss
        rate = (state.iteration - at) / (now - first) if now - first >= _SHORTEST else 0.0
        parts = []
        if run in self._loss:
            parts.append(f"loss {self._loss[run]:.3f}")
        if state.knn_top1 is not None:
            parts.append(f"kNN {state.knn_top1:.3f}")
        if rate:
            parts.append(f"{rate:.1f} it/s")
        if self._live:
            if run not in self._tasks:
                self._tasks[run] = self._bars.add_task(run, total=state.total, numbers="")
            self._bars.update(self._tasks[run], completed=state.iteration, numbers="  ".join(parts))
        elif now - self._printed.get(run, first) >= _PLAIN_EVERY or state.iteration == state.total:
            self._printed[run] = now
            if rate and state.iteration < state.total:
                left = (state.total - state.iteration) / rate
                parts.append(f"{left:.0f} s left" if left < 120 else f"{left / 60:.0f} min left")
            self.say(f"{run} {state.iteration}/{state.total}  {'  '.join(parts)}")
