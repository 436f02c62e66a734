"""What `stabilitylab.record` returns: the recorder of any loop."""

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

from stabilitylab.attach.ending import close_at_exit, status_of
from stabilitylab.attach.features import RecordsFeatures
from stabilitylab.attach.live import OnSpike, SpikeSink
from stabilitylab.attach.ordering import Ordering
from stabilitylab.attach.processes import LossMean, refuse_fsdp1
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
    """What `record` returns. A context manager; leaving it, also by an exception, writes all there is. So does the end
    of the program, or of the last reference."""

    _closed = True  # until it is open

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
        self._writer = None
        self._sharded = any(hasattr(p, "to_local") for layer in start.layers for p in layer.parameters)
        # Where gradients are whole, only the process that writes measures; shards need every process.
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
        reference = weakref.ref(self)  # hooks on the model must not keep a forgotten recorder alive
        self._timing.only_when(lambda: (me := reference()) is not None and me.iteration % me._recorder.every == 0)
        self._averaging = LossMean(self._parameters[0].device)
        self._pid = os.getpid()
        self._at_exit = close_at_exit(self)  # after the writer's own, so that it runs before
        self._closed = False
        self._declared: dict[str, tuple[str | None, str | None]] = {}

    @property
    def run(self) -> str:
        """The run's name; empty in a process that does not write."""
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
        """Record an iteration: call it between the last ``backward()`` and ``optimizer.step()``, before clipping.

        ``grad_scale``: a GradScaler's scale, where ``scaler.unscale_(optimizer)`` was not called. ``optimizer``: of
        several, the one about to step; only its parameters are measured. ``scalars``: any numbers of your own;
        ``epoch``, ``seconds``, ``images`` and ``ema_momentum`` are columns of ``iterations``. Tensors on a device are
        not waited for. ``norms``: the gradient norm by layer, where your engine computes it (DeepSpeed, Megatron):
        nothing else is measured of the gradient then. The loss of a distributed training is the mean over processes.
        """
        self._must_be_open()
        recorder = self._recorder
        if iteration is not None and iteration < self.iteration:
            raise RecordError(f"iteration {iteration} is recorded already; the next is {self.iteration}")
        numbers = {
            name: _number(name, value)
            for name, value in {"loss": loss, "lr": lr, **scalars}.items()
            if value is not None
        }
        at = self.iteration if iteration is None else iteration
        stats = self._given(norms) if norms is not None else self._timing.take(at, grad_scale, optimizer)
        if stats is None and recorder.log_grads and not self.has_gradient():
            raise RecordError(
                "rec.step() found no gradient: call it after loss.backward() and before optimizer.zero_grad()"
            )
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
        """Whether any parameter of the model has a gradient now, or the last backward pass was measured."""
        return self._timing.pending or any(p.grad is not None for p in self._parameters)

    def again(self, optimizer: Optimizer | None = None) -> None:
        """Measure the iteration recorded last once more: its gradient was replaced before the update, as SAM does."""
        stats = self._timing.take(self.iteration - 1, None, optimizer)
        stats = self._recorder.measure(optimizer=optimizer) if stats is None else stats
        self._recorder.replace(self.iteration - 1, stats)

    def starts_forward(self, loss: Tensor) -> None:
        """For frameworks: a forward pass gave ``loss``, whose graph tells what lies on its path."""
        self._timing.reset()
        self._ordering.note_loss(loss)

    def complete_when(self, complete: Callable[[], bool]) -> None:
        """For frameworks that accumulate: whether the backward pass that is running completes the gradients."""
        self._timing.only_when(complete)

    def _given(self, norms: Mapping[str, float | Tensor]) -> Measured:
        index = {layer.name: i for i, layer in enumerate(self._layers)}
        if unknown := [name for name in norms if name not in index]:
            raise RecordError(f"norms= names {unknown[0]!r}, which is not a layer; there are {', '.join(index)}")
        given = {index[name]: _number(f"norms[{name!r}]", norm) for name, norm in norms.items()}
        if negative := [norm for norm in given.values() if isinstance(norm, float) and norm < 0]:
            raise RecordError(f"norms= holds {negative[0]:g}; a gradient norm is 0 or more")
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
        """Record evaluations at this point of the training, e.g. ``rec.log(val_acc=0.83, num_samples=10_000)``.

        ``num_samples``: how many samples an accuracy is a share of; dips are then judged against its sampling error.
        ``goal`` (``max`` or ``min``) and ``scale`` (``fraction``, ``percent``, ``log`` or ``value``) say how to read
        the values; by default the names and values tell. Metrics with different goals need a call each.
        """
        self._must_be_open()
        values = {name: float(value) for name, value in {**(metrics or {}), **more}.items()}
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
        """Record that something happened."""
        self._must_be_open()
        self._recorder.event(self.iteration, kind, detail)

    def close(self, status: str = "finished") -> None:
        """Write all there is and take hooks away. Calling it again does nothing."""
        if status not in STATUSES or status == "running":
            raise RecordError(f"a run ends as finished, stopped or crashed, not as {status!r}")
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
        """A run without any gradient ends with a warning that says why."""
        recorder = self._recorder
        if self._writer is None or not recorder.log_grads or recorder.num_measured or status == "crashed":
            return
        text = (
            f"0 iterations recorded in {self.run}: no optimizer step with a gradient was seen. Call rec.step() after "
            "loss.backward(), or pass the norms that your engine computes: rec.step(norms={...})"
        )
        recorder.event(self.iteration, "nothing-recorded", text)
        warnings.warn(text, stacklevel=3)

    def _must_be_open(self) -> None:
        if self._closed:
            raise RecordError(f"the recorder of {self.run} is closed; call record(..., resume=True) to go on")

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
            warnings.warn(f"the last rows of {self.run} are lost: {failure}", stacklevel=2)  # the loop's error counts

    def __del__(self) -> None:
        self.close("stopped")


def _number(name: str, value: float | Tensor) -> float | Tensor:
    """As it is now: a tensor on a device is copied there, not waited for."""
    if not isinstance(value, Tensor):
        return float(value)
    if value.numel() != 1:
        raise RecordError(f"{name} must be one number, not a tensor of shape {tuple(value.shape)}; take its mean()")
    value = value.detach().reshape(())
    return float(value) if value.device.type == "cpu" else value.clone()
