"""Measure gradients at the end of the backward pass, before other code can clip, zero, consume or free them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stabilitylab.recording.measurement import Measured
from stabilitylab.recording.recorder import Recorder
from stabilitylab.recording.statistics import joined


class BackwardEnd:
    """Measures each backward pass; `take` returns the last measurement.

    ``enabled``: returns whether the current pass completes the gradients (the last one with gradient accumulation).
    ``scale``: returns the loss scale of the gradients at that time. Gradients that a hook consumes during the backward
    pass (an optimizer fused into it, LOMO) are measured one by one as they arrive.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        enabled: Callable[[], bool] = lambda: True,
        scale: Callable[[], float | Tensor | None] = lambda: None,
    ) -> None:
        self._recorder, self.enabled, self._scale = recorder, enabled, scale
        self._measured: Measured | None = None
        # The callback of the current pass. Autograd drops it if the pass raises an error, and so shows that it ended.
        self._queued: weakref.ref[_AtTheEnd] | None = None
        self._accumulates = False  # whether this pass writes to .grad; torch.autograd.grad does not
        self._freed: bool | None = None  # whether gradients are freed before the pass ends; None: not known yet
        self._arrived: dict[Tensor, Tensor] = {}  # (2,): norm and largest absolute entry of each gradient so far
        parameters = [p for p in recorder.parameters if p.requires_grad]
        self._hooks: list[Any] = [p.register_post_accumulate_grad_hook(self._accumulated) for p in parameters]
        self._early: list[Any] = [p.register_hook(_Arrival(self, p)) for p in parameters]

    @property
    def freed(self) -> bool:
        """Whether gradients are freed before the backward pass ends."""
        return bool(self._freed)

    @property
    def pending(self) -> bool:
        """Whether there is a measurement that has not been taken."""
        return self._measured is not None

    def take(self) -> Measured | None:
        """Return the last measurement and clear it; None if there is none."""
        measured, self._measured = self._measured, None
        return measured

    def reset(self) -> None:
        """Discard the state of a backward pass that raised an error."""
        self._queued = None
        self._accumulates = False
        self._arrived.clear()

    def remove(self) -> None:
        for hook in (*self._hooks, *self._early):
            hook.remove()
        self._hooks, self._early = [], []

    @torch.no_grad()
    def arrive(self, parameter: Tensor, grad: Tensor) -> None:
        self._queue()
        if grad.is_sparse:
            grad = grad.coalesce().values()
        grad = grad.detach().abs()
        self._arrived[parameter] = torch.stack([grad.double().norm(), grad.amax()]) if grad.numel() else grad.sum()

    def _accumulated(self, parameter: Tensor) -> None:
        self._accumulates = True
        self._queue()

    def _queue(self) -> None:
        if self._queued is not None and self._queued() is None:
            self.reset()
        if self._queued is None and self.enabled():
            callback = _AtTheEnd(self)
            self._queued = weakref.ref(callback)
            torch.autograd.Variable._execution_engine.queue_callback(callback)

    def end(self) -> None:
        self._queued = None
        arrived, self._arrived = self._arrived, {}
        accumulates, self._accumulates = self._accumulates, False
        if not accumulates:
            return
        gone = [p for p in arrived if p.grad is None]
        if self._freed is None and arrived:
            self._freed = bool(gone)
            if not self._freed:
                for hook in self._early:
                    hook.remove()
                self._early = []
        try:
            norms = arrived if gone else None
            measured = self._recorder.measure(grad_scale=self._scale(), arrived=norms)
            before = self._measured
            self._measured = measured if before is None else joined(before, measured, self._recorder.declared)
        except Exception as error:  # raised here, it would stop training with an autograd engine error
            self._recorder.event(0, "not-measured", f"at the end of the backward pass: {error}")


class _Arrival:
    """A gradient hook that knows its parameter and is not duplicated when the parameter is deep-copied."""

    def __init__(self, owner: BackwardEnd, parameter: Tensor) -> None:
        self._owner, self._parameter = owner, parameter

    def __call__(self, grad: Tensor) -> None:
        self._owner.arrive(self._parameter, grad)

    def __deepcopy__(self, _: dict[int, Any]) -> _Arrival:
        return self


class _AtTheEnd:
    """Ends a backward pass. DDP also queues its averaging for the end of the pass, after this callback, so the first
    call queues a second one, which runs after DDP's."""

    def __init__(self, owner: BackwardEnd) -> None:
        self._owner, self._again = owner, False

    def __call__(self) -> None:
        if self._again:
            self._owner.end()
        else:
            self._again = True
            torch.autograd.Variable._execution_engine.queue_callback(self)
