"""`LoopRecorder`, the recorder for any training loop, which `stabilitylab.record` returns."""

from __future__ import annotations

import atexit
import json
import os
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from stabilitylab.attach.closing import close_at_exit, status_of
from stabilitylab.attach.features import RecordsFeatures
from stabilitylab.attach.live import OnSpike, SpikeSink
from stabilitylab.attach.ordering import Ordering
from stabilitylab.attach.processes import LossMean, refuse_fsdp1
from stabilitylab.attach.request import replaced_since
from stabilitylab.attach.start import Start, open_run_for, writes
from stabilitylab.attach.timing import Timing
from stabilitylab.errors import ConfigError, RecordError
from stabilitylab.metrics import check_goal
from stabilitylab.recording.measurement import Measured
from stabilitylab.recording.recorder import Recorder
from stabilitylab.recording.sink import NullSink
from stabilitylab.recording.statistics import with_norms
from stabilitylab.store.schema import STATUSES, TABLES

_COLUMNS = {column.name for column in TABLES["iterations"]} - {"iteration", "grad_norm"}


class LoopRecorder(RecordsFeatures):
    """Returned by `record`. A context manager: leaving it, also by an exception, writes all remaining rows. So does the
    end of the program or of the last reference."""

    _closed = True  # until __init__ has succeeded

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        start: Start,
        options: dict[str, Any],
        *,
        ends: tuple[str | None, str | None] = (None, None),
        measure: str = "auto",
        on_spike: OnSpike | None = None,
    ) -> None:
        refuse_fsdp1(model)
        self.iteration = 0
        self.path: Path | None = None
        self._layers = start.layers
        self._parameters = list(model.parameters())
        self._model = weakref.ref(model)
        self._complete = False  # whether the first step has shown that the model is still the one given
        self._writer = None
        self._sharded = any(hasattr(p, "to_local") for layer in start.layers for p in layer.parameters)
        # With full gradients, only the process that writes measures them; shards are measured in every process.
        log_grads = writes() or self._sharded
        try:
            self._recorder = Recorder(
                start.layers, NullSink(), model=model, optimizer=optimizer, log_grads=log_grads, **options
            )
        except ValueError as error:
            raise RecordError(str(error)) from None
        try:
            opened = open_run_for(start, device=str(self._parameters[0].device), together=self._sharded)
        except BaseException:
            self._recorder.close(settle=False)
            raise
        self.iteration, self.path, self._writer = opened.iteration, opened.path, opened.writer
        if self._writer is not None:
            names = [layer.name for layer in start.layers]
            self._recorder.sink = SpikeSink(self._writer, names, on_spike) if on_spike else self._writer
        watch = opened.needs_order and self._writer is not None
        self._ordering = Ordering(model, start.layers, watch=watch, first=ends[0], last=ends[1])
        self._timing = Timing(measure, self._recorder, optimizer, possible=not self._sharded)
        reference = weakref.ref(self)  # hooks on the model must not keep the recorder alive
        self._timing.only_when(lambda: (me := reference()) is not None and me.iteration % me._recorder.every == 0)
        self._averaging = LossMean(self._parameters[0].device)
        self._pid = os.getpid()
        self._at_exit = close_at_exit(self)  # registered after that of the writer, so it runs first
        self._closed = False
        self._declared: dict[str, tuple[str | None, str | None]] = {}

    @property
    def run(self) -> str:
        """Name of the run; empty in a process that does not write."""
        return self.path.name if self.path is not None else ""

    def step(
        self,
        loss: float | Tensor | None = None,
        lr: float | Tensor | None = None,
        *,
        iteration: int | None = None,
        grad_scale: float | Tensor | None = None,
        optimizer: Optimizer | None = None,
        norms: Mapping[str, float | Tensor] | None = None,
        **scalars: float | Tensor,
    ) -> None:
        """Record an iteration. Call it between the last ``backward()`` and ``optimizer.step()``, before clipping.

        ``loss``, ``lr``: numbers or tensors with one element; reading a tensor on a device does not block. In
        distributed training, the mean of the loss over processes is recorded.
        ``grad_scale``: the scale of a GradScaler, if ``scaler.unscale_(optimizer)`` was not called.
        ``optimizer``: with several optimizers, the one about to step; only its parameters are measured.
        ``norms``: gradient norms by layer, if your engine computes them (DeepSpeed, Megatron); no other gradient signal
        is measured then.
        ``scalars``: any other numbers. ``epoch``, ``seconds``, ``images`` and ``ema_momentum`` are columns of
        ``iterations``.

        Raises:
            RecordError: there is no gradient, the iteration is recorded already, or the recorder is closed.
        """
        self._must_be_open()
        recorder = self._recorder
        if iteration is not None and iteration < self.iteration:
            raise RecordError(f"iteration {iteration} is already recorded; the next is {self.iteration}")
        numbers = {
            name: _number(name, value)
            for name, value in {"loss": loss, "lr": lr, **scalars}.items()
            if value is not None
        }
        at = self.iteration if iteration is None else iteration
        if grad_scale is None and norms is None:
            grad_scale = self._timing.scale_at_call(at, optimizer)
        stats = self._given(norms) if norms is not None else self._timing.take(at, grad_scale, optimizer)
        due = recorder.log_grads and at % recorder.every == 0
        if stats is None and due and not self.has_gradient():
            raise RecordError(
                replaced_since(self._model(), self._parameters)
                or "rec.step() found no gradient: call it after loss.backward() and before optimizer.zero_grad()"
            )
        if not self._complete:
            self._complete = True
            if text := replaced_since(self._model(), self._parameters):
                self._recorder.event(at, "model-changed", text)
                warnings.warn(text, stacklevel=2)
        self.iteration = at
        self._ordering.step(self.iteration, recorder.sink, loss)
        if "loss" in numbers:
            numbers["loss"] = self._averaging(numbers["loss"])
        columns: dict[str, Any] = {name: value for name, value in numbers.items() if name in _COLUMNS}
        recorder.step(self.iteration, stats=stats, grad_scale=grad_scale, optimizer=optimizer, **columns)
        for name in numbers.keys() - columns.keys():
            recorder.scalar(self.iteration, name, numbers[name])
        self.iteration += 1
        recorder.flush_if_due()

    def has_gradient(self) -> bool:
        """Whether any parameter has a gradient, or the last backward pass was measured."""
        return self._timing.pending or any(p.grad is not None for p in self._parameters)

    def again(self, optimizer: Optimizer | None = None) -> None:
        """Measure the last recorded iteration again, because its gradient was replaced before the update, as in SAM."""
        stats = self._timing.take(self.iteration - 1, None, optimizer)
        stats = self._recorder.measure(optimizer=optimizer) if stats is None else stats
        self._recorder.change(self.iteration - 1, lambda _: stats)

    def starts_forward(self, loss: Tensor) -> None:
        """For frameworks: a forward pass returned ``loss``, whose graph shows which layers it depends on."""
        self._timing.reset()
        self._ordering.note_loss(loss)

    def complete_when(self, complete: Callable[[], bool]) -> None:
        """For frameworks with gradient accumulation. ``complete()``: whether the current backward pass is the last."""
        self._timing.only_when(complete)

    def _given(self, norms: Mapping[str, float | Tensor]) -> Measured:
        index = {layer.name: i for i, layer in enumerate(self._layers)}
        if unknown := [name for name in norms if name not in index]:
            raise RecordError(f"norms= names {unknown[0]!r}, which is not a layer; the layers are {', '.join(index)}")
        given = {index[name]: _number(f"norms[{name!r}]", norm) for name, norm in norms.items()}
        if negative := [norm for norm in given.values() if isinstance(norm, float) and norm < 0]:
            raise RecordError(f"norms= contains {negative[0]:g}; a gradient norm must not be negative")
        return with_norms(self._recorder.measure(arrived={}), self._recorder.declared, given)

    def log(
        self,
        metrics: Mapping[str, float | Tensor] | None = None,
        *,
        num_samples: int = 0,
        goal: str | None = None,
        scale: str | None = None,
        **more: float | Tensor,
    ) -> None:
        """Record evaluation metrics at the current iteration, e.g. ``rec.log(val_acc=0.83, num_samples=10_000)``.

        ``num_samples``: number of samples of an accuracy; dips are then judged against its sampling error. ``goal``
        (``max`` or ``min``), ``scale`` (``fraction``, ``percent``, ``log`` or ``value``): by default inferred from the
        names and values. Metrics with different goals need separate calls.
        """
        self._must_be_open()
        values = {name: float(_number(name, value)) for name, value in {**(metrics or {}), **more}.items()}
        for name in values:
            try:
                check_goal(name, goal, scale)
            except ConfigError as error:
                raise RecordError(str(error)) from None
        for name, value in values.items():
            if (goal, scale) != (None, None) and self._declared.get(name) != (goal, scale):
                self._declared[name] = (goal, scale)
                self.event("metric", json.dumps({"name": name, "goal": goal, "scale": scale}))
            self._recorder.log(self.iteration, name, value, num_samples)

    def event(self, kind: str, detail: str = "") -> None:
        """Record an event at the current iteration. ``kind``: a short name; ``detail``: any text."""
        self._must_be_open()
        self._recorder.event(self.iteration, kind, detail)

    def close(self, status: str = "finished") -> None:
        """Write all remaining rows and remove all hooks. Calling it again has no effect."""
        if status not in STATUSES or status == "running":
            raise RecordError(f"status must be finished, stopped or crashed, not {status!r}")
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        try:
            self._timing.remove()
            self._ordering.close(self.iteration, self._recorder.sink)
            self._recorder.close(settle=status == "finished" or not self._sharded)
            self._note_nothing(status)
        finally:
            if self._writer is not None:
                self._writer.close(status)

    def _note_nothing(self, status: str) -> None:
        """Warn about a run without any gradient, and say why."""
        recorder = self._recorder
        if self._writer is None or not recorder.log_grads or recorder.num_measured or status == "crashed":
            return
        text = (
            f"no iterations were recorded in {self.run}, because there was no optimizer step with a gradient. Call "
            "rec.step() after loss.backward(), or pass the norms that your engine computes: rec.step(norms={...})"
        )
        recorder.event(self.iteration, "nothing-recorded", text)
        warnings.warn(text, stacklevel=3)

    def _must_be_open(self) -> None:
        if self._closed:
            raise RecordError(f"the recorder of {self.run} is closed; call record(..., resume=True) to continue")

    def __repr__(self) -> str:
        return f"<LoopRecorder of run {self.run or 'of another process'}, {self.iteration} iterations>"

    def __enter__(self) -> LoopRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close(status_of(error))
        except Exception as failure:
            if error is None:
                raise
            warnings.warn(
                f"the last rows of {self.run} are lost: {failure}", stacklevel=2
            )  # the exception of the loop takes precedence

    def __del__(self) -> None:
        self.close("stopped")


def _number(name: str, value: float | Tensor) -> float | Tensor:
    """The current value. A tensor on a device is copied there, which does not block."""
    if not isinstance(value, Tensor):
        try:
            return float(value)
        except (TypeError, ValueError):
            raise RecordError(f"{name} must be a number, not {value!r}") from None
    if value.numel() != 1:
        raise RecordError(f"{name} must be one number, not a tensor of shape {tuple(value.shape)}; take its mean()")
    value = value.detach().reshape(())
    return float(value) if value.device.type == "cpu" else value.clone()
