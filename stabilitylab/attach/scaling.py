"""The loss scaler of a mixed-precision loop that does not mention it to the recorder."""

from __future__ import annotations

import gc
import sys
import warnings
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer

from stabilitylab.recording.recorder import Recorder
from stabilitylab.recording.statistics import scaled


class LossScale:
    """Finds the scaler that steps ``optimizer``, and tells by which factor gradients are still scaled.

    The first step of the optimizer shows the scaler: it is on the call stack. The next call of ``rec.step()`` shows
    whether gradients are unscaled by then; if not, the rows recorded before are divided by the scale as well.
    """

    def __init__(self, recorder: Recorder, optimizer: Optimizer | None) -> None:
        self._recorder, self._optimizer = recorder, optimizer
        self._scaler: Any = None
        self._last: int | None = None  # the iteration recorded last, as long as no scale is known
        self._unsure: tuple[int, Tensor] | None = None  # iteration that may be scaled, and the scale
        self._told = False

    def stepping(self) -> bool:
        """Called before the optimizer's first steps. Returns whether this one shows the scaler."""
        new = self._scaler is None and (scaler := _on_the_stack()) is not None
        if new:
            self._scaler = scaler
            scale = self.current()
            if scale is not None and self._last is not None:
                self._unsure = self._last, scale
                self._recorder.holds.add("scale")
        return new

    def current(self) -> Tensor | None:
        """The scale of the loss now; None without a scaler."""
        scale = getattr(self._scaler, "_scale", None)
        return None if scale is None else scale.clone()

    def at_call(self, iteration: int, optimizer: Optimizer | None, *, stepped: bool) -> Tensor | None:
        """The factor by which gradients are scaled at ``rec.step()``. ``stepped``: the optimizer has stepped."""
        still = self._scaler is not None and not stepped and not self._unscaled(optimizer or self._optimizer)
        if self._unsure is not None:
            (at, scale), self._unsure = self._unsure, None
            self._recorder.holds.discard("scale")
            if still:
                self._recorder.change(at, lambda stats: scaled(stats, self._recorder.declared, 1 / scale))
        self._last = iteration
        if not still:
            return None
        if not self._told:
            self._told = self._recorder.amp_skips = True
            self._recorder.event(
                iteration, "scaled", "gradients are unscaled after rec.step(): norms are divided by it"
            )
        return self.current()

    def _unscaled(self, optimizer: Optimizer | None) -> bool:
        state = self._scaler._per_optimizer_states.get(id(optimizer))
        return state is not None and state["stage"] is not OptState.READY

    def search(self) -> Tensor | None:
        """The scale of the only scaler alive, if the call stack did not show it (timm's NativeScaler)."""
        if self._scaler is None:
            alive = [
                scaler
                for scaler in gc.get_objects()
                if issubclass(type(scaler), torch.amp.GradScaler) and scaler.is_enabled() and scaler._scale is not None
            ]
            stepping = [scaler for scaler in alive if id(self._optimizer) in scaler._per_optimizer_states]
            alive = stepping or alive
            if len(alive) > 1:
                text = (
                    "several loss scalers are alive, so gradient norms are recorded as scaled. Call "
                    "rec.step(grad_scale=...) before the optimizer step"
                )
                self._recorder.event(0, "scaled", text)
                warnings.warn(text, stacklevel=7)
            if len(alive) == 1:
                self._scaler = alive[0]
        if self._scaler is not None:
            self._recorder.amp_skips = True
        return self.current()


def _on_the_stack() -> Any:
    """The loss scaler whose ``step`` is being called, if there is one."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(12):
        if frame is None:
            return None
        # Before Python 3.13, reading `f_locals` keeps every local of a frame alive, so a user's frame is left alone.
        if frame.f_code.co_name in ("step", "_maybe_opt_step"):
            owner = frame.f_locals.get("self")
            if isinstance(owner, torch.amp.GradScaler):
                return owner if owner.is_enabled() else None
        frame = frame.f_back
    return None
