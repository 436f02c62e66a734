"""Preemption: SIGUSR1, SIGUSR2 or SIGTERM stops training after the current iteration, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from stabilitylab.train.distributed import World

_NAMES = ("SIGUSR1", "SIGUSR2", "SIGTERM")


class Interruption:
    """Handles the signals from its creation until `close`. A second signal gets its default handling.

    All processes must stop after the same iteration, but a signal may reach only some of them, so they synchronise
    every ``every`` iterations.
    """

    def __init__(self, world: World, device: torch.device, every: int = 1) -> None:
        self.world, self.device, self.every = world, device, every
        self._number = 0
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return  # signal handlers can be set only in the main thread
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not None:
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        self.close()

    def asked(self, iteration: int) -> str:
        """The name of the signal received up to ``iteration``, or an empty string."""
        number = self._number
        if self.world.size > 1:
            if iteration % self.every:
                return ""
            received = torch.tensor(number, device=self.device)
            dist.all_reduce(received, dist.ReduceOp.MAX)
            number = int(received)
        return signal.Signals(number).name if number else ""

    def close(self) -> None:
        """Restore the previous signal handlers."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
