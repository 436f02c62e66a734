"""Optimizers that compute a second gradient inside their step, such as SAM, and apply that one."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from stabilitylab.recording.recorder import Recorder
from stabilitylab.recording.statistics import with_gradients


class AppliedGradient:
    """Measures the gradient that such an optimizer applied, in place of the one that ``rec.step()`` saw.

    It applies to ``optimizer.step(closure)`` of an optimizer with a ``second_step``. Rows wait in memory until the
    step is over.
    """

    def __init__(self, recorder: Recorder, optimizer: Optimizer | None) -> None:
        self._recorder = recorder
        self._at: int | None = None  # the iteration recorded last, while its step is not over
        self._hook: Any = None
        self._seen, self._first = False, True
        if optimizer is not None and hasattr(optimizer, "second_step") and recorder.log_grads:
            self._hook = optimizer.register_step_post_hook(self._applied)

    def recording(self, iteration: int) -> None:
        """Called by ``rec.step()`` before it records ``iteration``."""
        if self._hook is None:
            return
        # Either no step(closure) came after the last row, or one came before the first: nothing is to be replaced.
        if self._seen == self._first:
            self.remove()
            return
        self._first = False
        self._at = iteration
        self._recorder.holds.add("applied")

    def remove(self) -> None:
        """Remove the hook. Idempotent."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self._recorder.holds.discard("applied")

    def _applied(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        at, self._at = self._at, None
        self._seen |= bool(args) or any(value is not None for value in kwargs.values())
        recorder = self._recorder
        if at is None or not self._seen or at % recorder.every:
            return
        if recorder.has_gradient():
            new = recorder.measure()
            recorder.change(at, lambda old: with_gradients(old, new, recorder.declared))
        recorder.holds.discard("applied")
        recorder.flush_if_due()
