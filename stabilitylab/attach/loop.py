"""``stabilitylab.record``: attach the recorder to any PyTorch loop."""

from __future__ import annotations

import atexit
import json
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from stabilitylab.attach.features import RecordsFeatures
from stabilitylab.attach.live import OnSpike, SpikeSink
from stabilitylab.attach.ordering import Ordering, check_ends
from stabilitylab.attach.request import check_options, check_signals, chosen_layers, in_order
from stabilitylab.attach.start import Start, open_run_for, writes
from stabilitylab.errors import ConfigError, RecordError
from stabilitylab.metrics import check_goal
from stabilitylab.recording.measurement import Measured
from stabilitylab.recording.recorder import NullSink, Recorder
from stabilitylab.signals import DEFAULT
from stabilitylab.store.schema import STATUSES, TABLES

_COLUMNS = {column.name for column in TABLES["iterations"]} - {"iteration", "grad_norm"}


def record(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    run: str | None = None,
    runs_dir: str | Path | None = None,
    signals: Sequence[str] = DEFAULT,
    granularity: str = "block",
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
    depth: Sequence[str] | None = None,
    first: str | None = None,
    last: str | None = None,
    every: int = 1,
    flush_every: int = 200,
    flush_seconds: float = 5.0,
    amp_skips: bool = False,
    resume: bool | int = False,
    config: dict[str, Any] | None = None,
    on_spike: OnSpike | None = None,
) -> LoopRecorder:
    """Record every layer of ``model`` from your own loop::

        with stabilitylab.record(model, optimizer, run="my_run") as rec:
            for images, labels in batches:
                loss = criterion(model(images), labels)
                loss.backward()
                rec.step(loss=loss, lr=lr)
                optimizer.step()
                optimizer.zero_grad()

    Nothing is wrapped and no gradient changes: the training is bit-identical with and without.

    ``run``: the run's name; None takes the next run_NNN. A taken name raises `RunExists`; ``resume`` goes on with it,
    after its last iteration or at the one given: what was recorded from there on is dropped.
    ``signals``: names in `stabilitylab.signals.SIGNALS`, which says what each one is.
    ``granularity``: block, module or param. ``include``, ``exclude``: patterns of layer names (``blocks.*``).
    ``depth``: layer names from input to output, where the order of execution is not the right one.
    ``first``, ``last``: the layers between which spikes travel, where they are not the first and last on the path of
    the loss.
    ``every``: record each how many iterations. ``amp_skips``: a GradScaler skips updates; see `Recorder`.
    ``config``: what you want to find in the run's ``meta`` later.
    ``on_spike``: called with each `Spike` once it is over and written; what it raises ends the loop.

    In a distributed training call it in every process: rank 0 writes.
    """
    check_signals(signals, optimizer)
    check_options(
        every=every, flush_every=flush_every, flush_seconds=flush_seconds, resume=resume, run=run, config=config
    )
    layers = chosen_layers(model, granularity, include, exclude)
    if depth is not None:
        layers = in_order(layers, list(depth))
    check_ends(layers, first, last)
    options: dict[str, Any] = {
        "signals": tuple(signals),
        "every": every,
        "flush_every": flush_every,
        "flush_seconds": flush_seconds,
        "amp_skips": amp_skips,
    }
    start = Start(layers, run, runs_dir, resume, dict(config or {}), ordered=depth is not None)
    return LoopRecorder(model, optimizer, start, options, (first, last), on_spike)


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
        ends: tuple[str | None, str | None] = (None, None),
        on_spike: OnSpike | None = None,
    ) -> None:
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
        self._pid = os.getpid()
        self._at_exit = _close_at_exit(self)  # after the writer's own, so that it runs before
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
        stats: Measured | None = None,
        **scalars: float | Tensor,
    ) -> None:
        """Record an iteration: call it between the last ``backward()`` and ``optimizer.step()``, before clipping.

        ``grad_scale``: a GradScaler's scale, where ``scaler.unscale_(optimizer)`` was not called. ``optimizer``: of
        several, the one about to step; only its parameters are measured. ``scalars``: any numbers of your own;
        ``epoch``, ``seconds``, ``images`` and ``ema_momentum`` are columns of ``iterations``. Tensors on a device are
        not waited for. ``stats``: what `measure` gave earlier.
        """
        self._must_be_open()
        recorder = self._recorder
        if stats is None and recorder.log_grads and not recorder.has_gradient() and not self.has_gradient():
            raise RecordError(
                "rec.step() found no gradient: call it after loss.backward() and before optimizer.zero_grad()"
            )
        if iteration is not None and iteration < self.iteration:
            raise RecordError(f"iteration {iteration} is recorded already; the next is {self.iteration}")
        numbers = {
            name: _number(name, value)
            for name, value in {"loss": loss, "lr": lr, **scalars}.items()
            if value is not None
        }
        self.iteration = self.iteration if iteration is None else iteration
        self._ordering.step(self.iteration, recorder.sink, loss)
        columns: dict[str, Any] = {name: value for name, value in numbers.items() if name in _COLUMNS}
        recorder.step(self.iteration, stats=stats, grad_scale=grad_scale, optimizer=optimizer, **columns)
        for name in numbers.keys() - columns.keys():
            recorder.scalar(self.iteration, name, numbers[name])
        self.iteration += 1
        recorder.flush_if_due()

    def has_gradient(self) -> bool:
        """Whether any parameter of the model has a gradient now."""
        return any(p.grad is not None for p in self._parameters)

    def measure(self) -> Measured | None:
        """The gradients' statistics as they are now, for a later ``step(stats=...)``. None in a process that does
        not measure."""
        self._must_be_open()
        return self._recorder.measure() if self._recorder.log_grads else None

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
            self._ordering.close(self.iteration, self._recorder.sink)
            self._recorder.close(settle=status == "finished" or not self._sharded)
        finally:
            if self._writer is not None:
                self._writer.close(status)

    def _must_be_open(self) -> None:
        if self._closed:
            raise RecordError(f"the recorder of {self.run} is closed; call record(..., resume=True) to go on")

    def __enter__(self) -> LoopRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close(_status(error))
        except Exception as failure:
            if error is None:
                raise
            warnings.warn(f"the last rows of {self.run} are lost: {failure}", stacklevel=2)  # the loop's error counts

    def __del__(self) -> None:
        self.close("stopped")


def _status(error: BaseException | None) -> str:
    return "finished" if error is None else "crashed" if isinstance(error, Exception) else "stopped"


def _close_at_exit(recorder: LoopRecorder) -> Callable[[], None]:
    reference = weakref.ref(recorder)

    def close() -> None:
        forgotten = reference()
        if forgotten is not None:
            forgotten.close("crashed" if isinstance(getattr(sys, "last_value", None), Exception) else "stopped")

    atexit.register(close)
    return close


def _number(name: str, value: float | Tensor) -> float | Tensor:
    """As it is now: a tensor on a device is copied there, not waited for."""
    if not isinstance(value, Tensor):
        return float(value)
    if value.numel() != 1:
        raise RecordError(f"{name} must be one number, not a tensor of shape {tuple(value.shape)}; take its mean()")
    value = value.detach().reshape(())
    return float(value) if value.device.type == "cpu" else value.clone()
