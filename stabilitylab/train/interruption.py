"""A scheduler wants its node back: SIGUSR1 or SIGTERM ends a training after its iteration, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from stabilitylab.train.distributed import World

_NAMES = ("SIGUSR1", "SIGTERM")


class Interruption:
    """Listens from its creation until `close`. A second signal does what it would without us.

    Several processes must end after the same iteration, and a signal may reach one of them first: every ``every``
    iterations they tell each other.
    """

    def __init__(self, world: World, device: torch.device, every: int = 1) -> None:
        self.world, self.device, self.every = world, device, every
        self._number = 0
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets no other thread set handlers
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not None:
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        self.close()

    def asked(self, iteration: int) -> str:
        """The signal that asked to end after ``iteration``, or nothing."""
        number = self._number
        if self.world.size > 1:
            if iteration % self.every:
                return ""
            told = torch.tensor(number, device=self.device)
            dist.all_reduce(told, dist.ReduceOp.MAX)
            number = int(told)
        return signal.Signals(number).name if number else ""

    def close(self) -> None:
        """Put back the handlers that were there before."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
