"""Decides when gradients are measured: when the loop calls ``rec.step``, or at the end of the preceding backward
pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from stabilitylab.attach.applied import AppliedGradient
from stabilitylab.attach.scaling import LossScale
from stabilitylab.recording.backward import BackwardEnd
from stabilitylab.recording.measurement import Measured
from stabilitylab.recording.recorder import Recorder
from stabilitylab.recording.statistics import global_norm, joined, of_layers, scaled

MEASURES = ("auto", "step", "backward")
_TRIAL = 12
"""Number of steps in which both are measured and compared before ``auto`` chooses the call."""
_EVIDENCE = 3
"""Number of steps in which the two measurements differ before the cause is judged."""


class Timing:
    """``measure``: ``step``, ``backward``, or ``auto``, which measures at the call unless gradients are freed, zero,
    clipped or already applied by then."""

    def __init__(self, measure: str, recorder: Recorder, optimizer: Optimizer | None, *, possible: bool = True) -> None:
        self.mode = measure if possible else "step"
        self._auto = self.mode == "auto"
        self._recorder = recorder
        self._backward: BackwardEnd | None = None
        optimizer = _with_hooks(optimizer)
        self._scaling = LossScale(recorder, optimizer)
        self._trial = 0
        self._changed: list[tuple[int, Measured, float, float]] = []  # iteration, before, norm before and at the call
        self._complete: Callable[[], bool] = lambda: True
        self._updated = False  # whether the optimizer has stepped since the last backward pass
        self._hooks: list[Any] = []
        self._applied = AppliedGradient(recorder, optimizer if self._auto else None)
        if self.mode != "step" and recorder.log_grads:
            self._backward = BackwardEnd(recorder, scale=self._scale)
            if optimizer is not None and self.mode == "auto":
                self._hooks = [optimizer.register_step_pre_hook(self._stepping)]

    def only_when(self, complete: Callable[[], bool]) -> None:
        """Measure a backward pass only if ``complete()`` is true while it runs."""
        self._complete = complete
        if self._backward is not None:
            self._backward.enabled = complete

    @property
    def pending(self) -> bool:
        """Whether a measured backward pass was not yet recorded by a step."""
        return self._backward is not None and self._backward.pending

    def scale_at_call(self, iteration: int, optimizer: Optimizer | None) -> Tensor | None:
        """The factor by which the gradients are still scaled, for a loop that passes none."""
        return self._scaling.at_call(iteration, _with_hooks(optimizer), stepped=self._updated)

    def take(self, iteration: int, grad_scale: float | Tensor | None, optimizer: Optimizer | None) -> Measured | None:
        """Gradient statistics of this step; None if they should be measured at the call."""
        self._applied.recording(iteration)
        before = self._backward.take() if self._backward is not None else None
        updated, self._updated = self._updated, False
        if before is None:
            self._late_clipping(iteration)
            return None
        if self.mode == "auto":
            before = self._decide(iteration, before, updated, grad_scale)
        if before is None or optimizer is None:
            return before
        return of_layers(before, self._recorder.declared, self._recorder.layers_of(optimizer))

    def reset(self) -> None:
        """Discard a backward pass that failed. Called when a forward pass begins."""
        if self._backward is not None:
            self._backward.reset()

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._applied.remove()
        self._scaling = LossScale(self._recorder, None)
        if self._backward is not None:
            self._backward.remove()

    def _decide(
        self, iteration: int, before: Measured, updated: bool, grad_scale: float | Tensor | None
    ) -> Measured | None:
        """``auto``: which of the two measurements of a step to record."""
        recorder = self._recorder
        if updated or not recorder.has_gradient():
            why = "the optimizer had stepped before rec.step()" if updated else "gradients were freed before rec.step()"
            scale = self._scaling.search() if updated else None
            self._settle("backward", iteration, why)
            return before if scale is None else scaled(before, recorder.declared, 1 / scale)
        now = recorder.measure(grad_scale=grad_scale)
        was, norm = global_norm(before, recorder.declared), global_norm(now, recorder.declared)
        if norm == 0 and was > 0:
            self._settle("backward", iteration, "gradients are zero at rec.step(), because zero_grad() comes before it")
            return before
        self._trial += 1
        if math.isfinite(was) and math.isfinite(norm) and abs(norm - was) > 1e-4 * was:
            self._changed.append((iteration, before, was, norm))
            if len(self._changed) < _EVIDENCE:
                recorder.holds.add("trial")
        if len(self._changed) >= _EVIDENCE:
            norms = [norm for *_, norm in self._changed]
            ratios = [norm / was for *_, was, norm in self._changed]
            if max(norms) - min(norms) < 1e-3 * max(norms) and max(ratios) - min(ratios) > 1e-3 * max(ratios):
                for at, stats, *_ in self._changed[:-1]:
                    recorder.change(at, _constant(stats))
                text = f"gradients are clipped to a norm of {norm:.4g} before rec.step()"
                self._settle("backward", self._changed[0][0], text)
                return before
            self._settle("step", iteration)
        elif self._trial >= _TRIAL:
            self._settle("step", iteration)
        return joined(before, now, recorder.declared)

    def _settle(self, mode: str, iteration: int, why: str = "") -> None:
        self.mode, self._changed = mode, []
        self._recorder.holds.discard("trial")
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if mode == "step" and self._backward is not None:
            self._backward.remove()
            self._backward = None
        if why:
            self._recorder.event(iteration, "measured-in-backward", f"{why}: measured at the end of the backward pass")

    def _late_clipping(self, iteration: int) -> None:
        """Switch to the end of the backward pass if the recorder detects clipping after the trial."""
        if self._auto and self.mode == "step" and self._recorder.found_clipped:
            self._auto = False
            self._backward = BackwardEnd(self._recorder, enabled=self._complete, scale=self._scale)
            self._settle("backward", iteration, "gradients are clipped before rec.step()")

    def _stepping(self, *_: Any) -> None:
        self._updated = True
        if self._scaling.stepping() and self._changed:  # what was measured in backward was scaled
            scale = float(self._scaling.current() or 1.0)
            self._changed = [
                (at, scaled(stats, self._recorder.declared, 1 / scale), was / scale, norm)
                for at, stats, was, norm in self._changed
                if abs(norm - was / scale) > 1e-4 * was / scale
            ]

    def _scale(self) -> Tensor | None:
        self._updated = False
        return self._scaling.current()


def _with_hooks(optimizer: Any) -> Optimizer | None:
    """The optimizer inside wrappers such as accelerate's, which call it and take no hooks of their own."""
    while optimizer is not None and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer


def _constant(measured: Measured) -> Callable[[Measured], Measured]:
    """A change that replaces any statistics by ``measured``."""
    return lambda _: measured
