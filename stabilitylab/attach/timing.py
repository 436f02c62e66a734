"""Decides when gradients are measured: when the loop calls ``rec.step``, or at the end of the preceding backward
pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from stabilitylab.attach.applied import AppliedGradient
from stabilitylab.attach.scaling import LossScale
from stabilitylab.recording.backward import BackwardEnd
from stabilitylab.recording.measurement import Measured
from stabilitylab.recording.recorder import Recorder
from stabilitylab.recording.statistics import global_max, global_norm, joined, of_layers, scaled

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
        self._changed: list[tuple[int, Measured, float, float, float]] = []
        """Iteration, statistics before the call, norm before, and norm and largest entry at the call."""
        self._complete: Callable[[], bool] = lambda: True
        self._updated = False  # whether the optimizer has stepped since the last backward pass
        self._at_update: Measured | None = None  # the backward pass before the last update, if no step recorded it
        self._updates = 0  # since the last step
        self._recorded = False  # whether a step has recorded the gradient of the next update
        self._follows: bool | None = None  # whether ``rec.step`` follows the update; None: not known yet
        self._hooks: list[Any] = []
        self._applied = AppliedGradient(recorder, optimizer if self._auto else None)
        if self.mode != "step" and recorder.log_grads:
            self._backward = BackwardEnd(recorder, scale=self._scale)
            if optimizer is not None:
                self._hooks = [optimizer.register_step_pre_hook(self._stepping)]

    def only_when(self, complete: Callable[[], bool]) -> None:
        """Measure a backward pass only if ``complete()`` is true while it runs."""
        self._complete = complete
        if self._backward is not None:
            self._backward.enabled = complete

    @property
    def pending(self) -> bool:
        """Whether a measured backward pass was not yet recorded by a step."""
        return self._at_update is not None or (self._backward is not None and self._backward.pending)

    def scale_at_call(self, iteration: int, optimizer: Optimizer | None) -> Tensor | None:
        """The factor by which the gradients are still scaled, for a loop that passes none."""
        return self._scaling.at_call(iteration, _with_hooks(optimizer), stepped=self._updated)

    def take(self, iteration: int, grad_scale: float | Tensor | None, optimizer: Optimizer | None) -> Measured | None:
        """Gradient statistics of this step; None if they should be measured at the call."""
        self._applied.recording(iteration)
        before, follows = self._last_pass()
        self._recorded = not follows
        updated, self._updated = self._updated or follows, False
        if before is None:
            self._late_clipping(iteration)
            return None
        if self.mode == "auto":
            before = self._decide(iteration, before, updated, grad_scale)
        if before is None or optimizer is None:
            return before
        return of_layers(before, self._recorder.declared, self._recorder.layers_of(optimizer))

    def _last_pass(self) -> tuple[Measured | None, bool]:
        """The backward pass that a step records, and whether it was applied already. A pass after the update belongs
        to another loss (a GAN's generator reaches its discriminator), unless ``rec.step`` comes before updates."""
        pending = self._backward.take() if self._backward is not None else None
        applied, self._at_update = self._at_update, None
        updates, self._updates = self._updates, 0
        if applied is None or pending is None:
            if applied is not None or pending is not None:
                self._follows = applied is not None
            return (pending, False) if applied is None else (applied, True)
        follows = updates == 1 if self._follows is None else self._follows
        return (applied, True) if follows else (pending, False)

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
            self._changed.append((iteration, before, was, norm, global_max(now, recorder.declared)))
            if len(self._changed) < _EVIDENCE:
                recorder.holds.add("trial")
        if len(self._changed) >= _EVIDENCE:
            text = _clipping(self._changed)
            if text:
                for at, stats, *_ in self._changed[:-1]:
                    recorder.change(at, _constant(stats))
                self._settle("backward", self._changed[0][0], text)
                return before
            self._settle("step", iteration)
        elif self._trial >= _TRIAL:
            self._settle("step", iteration)
        return joined(before, now, recorder.declared)

    def _settle(self, mode: str, iteration: int, why: str = "") -> None:
        self.mode, self._changed = mode, []
        self._recorder.holds.discard("trial")
        if mode == "step":
            for hook in self._hooks:
                hook.remove()
            self._hooks, self._at_update = [], None
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

    def _stepping(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._updated = True
        self._updates += 1
        closure = any(callable(value) for value in (*args[1:], *kwargs.values()))  # SAM's applies another gradient
        recorded, self._recorded = self._recorded, False
        if self._backward is not None and not closure:
            if self._backward.pending:
                self._at_update = self._backward.take()
            elif not recorded and self._complete() and self._recorder.has_gradient():  # set by hand
                self._at_update = self._recorder.measure()
        if self.mode != "auto":
            return
        if self._scaling.stepping() and self._changed:  # what was measured in backward was scaled
            scale = float(self._scaling.current() or 1.0)
            self._changed = [
                (at, scaled(stats, self._recorder.declared, 1 / scale), was / scale, norm, top)
                for at, stats, was, norm, top in self._changed
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


def _clipping(changed: Sequence[tuple[int, Measured, float, float, float]]) -> str:
    """What shows that gradients are clipped before the call: their norm or largest entry is always the same, while the
    ratio of the norms is not. Empty if nothing does."""
    ratios = [norm / was for _, _, was, norm, _ in changed]
    if max(ratios) - min(ratios) <= 1e-3 * max(ratios):
        return ""
    for what, values in (("norm", [c[3] for c in changed]), ("largest entry", [c[4] for c in changed])):
        if max(values) > 0 and max(values) - min(values) < 1e-3 * max(values):
            return f"gradients are clipped to a {what} of {values[-1]:.4g} before rec.step()"
    return ""


def _constant(measured: Measured) -> Callable[[Measured], Measured]:
    """A change that replaces any statistics by ``measured``."""
    return lambda _: measured
