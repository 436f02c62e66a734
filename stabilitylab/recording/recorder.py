"""The recorder: statistics of every layer at every iteration, kept on the device until the flush."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import stabilitylab.recording.activations
import stabilitylab.recording.adam
import stabilitylab.recording.direction
import stabilitylab.recording.signals  # imported to register their signals  # noqa: F401
from stabilitylab.models.layers import Layer
from stabilitylab.recording.buffer import Buffer, Scalar
from stabilitylab.recording.checks import FIRST_LOOK, NormChecks
from stabilitylab.recording.columns import LayerStats, in_columns
from stabilitylab.recording.measurement import Measured, Measurement, Step, new_measurement
from stabilitylab.recording.selection import LayerIndex, Selection
from stabilitylab.recording.sink import Sink
from stabilitylab.recording.statistics import placed
from stabilitylab.recording.transfer import Transfer
from stabilitylab.signals import DEFAULT, SIGNALS


class Recorder:
    """Records layer statistics between ``backward()`` and the optimizer step.

    A layer gets rows from the first flush in which one of its parameters is trainable or has a gradient. Its statistics
    are NULL in iterations without a gradient. Gradients must be unscaled (AMP) and not yet clipped.

    ``layers``: from `group_layers`. ``signals``: names in `stabilitylab.signals.SIGNALS`; signals of the forward pass
    need ``model``, some need ``optimizer``. ``every``: record every n-th iteration. ``flush_every`` and
    ``flush_seconds`` limit how much a crash can lose. ``amp_skips``: a loss scaler skips updates with a non-finite
    gradient; such an iteration is recorded as an event, ``amp-skip``, and its gradient statistics are NULL. Raises
    ValueError if ``model`` lacks what a signal measures.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        sink: Sink,
        *,
        signals: Sequence[str] = DEFAULT,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        log_grads: bool = True,
        every: int = 1,
        flush_every: int = 200,
        flush_seconds: float = 5.0,
        amp_skips: bool = False,
    ) -> None:
        self.sink, self.signals = sink, tuple(signals)
        self._index = LayerIndex([layer.parameters for layer in layers])
        self.parameters = self._index.parameters
        self._live = np.array([layer.trainable for layer in layers], bool)
        self.log_grads = log_grads and bool(self._live.any())
        self._optimizer = optimizer
        self.every, self.flush_every, self.flush_seconds = every, flush_every, flush_seconds
        self._buffer = Buffer()
        self._copying: tuple[Buffer, Transfer] | None = None
        self._last_flush = time.monotonic()
        self._flush_at = min(flush_every, FIRST_LOOK)
        self.amp_skips = amp_skips
        self.holds: set[str] = set()
        """Whether flushes are on hold because rows in memory may still be replaced."""
        self.found_clipped = False
        """Whether the recorded norms turned out to be measured after clipping."""
        self.num_measured = 0
        """Iterations with a measured gradient."""
        self._checks = NormChecks()
        self.declared = [SIGNALS.choose(name) for name in self.signals]
        self._measurements = [new_measurement(name) for name in self.signals]
        self._reads_weights = any(signal.source == "weights" for signal in self.declared)
        self._late = any(type(m).after_update is not Measurement.after_update for m in self._measurements)
        self._stateful = [m for m in self._measurements if type(m).recorded is not Measurement.recorded]
        self._unsettled = False  # whether the last row awaits values known only after the update
        self._silent = set(self.signals)  # never measured so far
        if self.log_grads:
            self._attach(model, [layer.name for layer in layers])

    def _attach(self, model: nn.Module | None, layers: list[str]) -> None:
        for signal, measurement in zip(self.declared, self._measurements, strict=True):
            try:
                if model is not None:
                    measurement.attach(model, layers)
                elif signal.source == "forward":
                    raise ValueError("a signal of the forward pass needs model=")
            except ValueError as error:
                self._detach()
                raise ValueError(f"{signal.name}: {error}") from None

    def _detach(self) -> None:
        for measurement in self._measurements:
            measurement.detach()

    def has_gradient(self) -> bool:
        """Whether any recorded parameter has a gradient now."""
        return any(p.grad is not None for p in self._index.parameters)

    @torch.no_grad()
    def step(
        self,
        iteration: int,
        *,
        stats: Measured | None = None,
        grad_scale: float | Tensor | None = None,
        optimizer: Optimizer | None = None,
        skipped: Tensor | None = None,
        **scalars: Scalar,
    ) -> None:
        """Record one iteration. ``scalars`` are columns of the table ``iterations``; tensors stay on the device.
        ``stats``: an earlier result of `measure`, if the gradients have changed since. ``grad_scale``, ``optimizer``:
        as in `measure`. ``skipped``: whether a loss scaler skips this update, if known."""
        measures = self.log_grads and iteration % self.every == 0
        if measures and stats is None:
            stats = self.measure(grad_scale=grad_scale, optimizer=optimizer)
        self.settle()
        if skipped is not None:
            self._buffer.skips.append((iteration, skipped))
        if measures and stats is not None:
            self._buffer.stats.append((iteration, stats))
            for measurement in self._stateful:
                measurement.recorded()
            self._unsettled = self._late
        self._buffer.rows.append({"iteration": iteration, **scalars})

    @torch.no_grad()
    def measure(
        self,
        *,
        grad_scale: float | Tensor | None = None,
        optimizer: Optimizer | None = None,
        arrived: Mapping[Tensor, Tensor] | None = None,
    ) -> Measured:
        """Measure all signals: (signals, layers), on the device. ``grad_scale``: the loss scale still contained in the
        gradients. ``optimizer``: measure only its parameters; the gradients of others are not from this step.
        ``arrived``: (norm, largest absolute entry) of each gradient, if gradients are already freed; other gradient
        signals are then not measured."""
        settled = self.settle()
        parameters = self._index.parameters
        reached = [p.grad is not None if arrived is None else p in arrived for p in parameters]
        if optimizer is not None:
            updated = set(self._held(optimizer).parameters)
            reached = [yes and p in updated for yes, p in zip(reached, parameters, strict=True)]
        chosen = self._index.select(reached)
        # Skip the second pass over all parameters unless a signal reads weights.
        held = self._held(optimizer) if self._reads_weights or not chosen.parameters else chosen
        step = Step(self._index, chosen, held, optimizer or self._optimizer, grad_scale, settled)
        if arrived and chosen.parameters:
            norms = torch.stack([arrived[p].to(chosen.device) for p in chosen.parameters], 1).float()
            step.grad_norms = norms if grad_scale is None else norms / grad_scale
        for measurement in self._measurements:
            measurement.prepare(step)
        rows: list[Measured] = []
        for signal, measurement in zip(self.declared, self._measurements, strict=True):
            selection = held if signal.source == "weights" else chosen
            known = arrived is None or signal.source != "gradient" or signal.name in ("grad_norm", "grad_max")
            reads = known and (signal.source == "forward" or bool(selection.parameters))
            value = measurement.measure(step) if reads else None
            rows.append(placed(value, selection) or step.nothing)
        values, measured = zip(*rows, strict=True)
        device = held.device
        return Measured(torch.stack([v.to(device) for v in values]), torch.stack([m.to(device) for m in measured]))

    def change(self, iteration: int, change: Callable[[Measured], Measured]) -> None:
        """Replace the statistics of an iteration that is still in memory by what ``change`` makes of them."""
        self._buffer.stats = [(t, change(stats) if t == iteration else stats) for t, stats in self._buffer.stats]

    def layers_of(self, optimizer: Optimizer) -> list[bool]:
        """For each layer, whether ``optimizer`` updates any of its parameters."""
        return [bool(yes) for yes in self._held(optimizer).seen.tolist()]

    def _held(self, optimizer: Optimizer | None) -> Selection:
        """The trainable parameters of ``optimizer``, or of all layers if None."""
        updated = None if optimizer is None else {p for group in optimizer.param_groups for p in group["params"]}
        return self._index.select(p.requires_grad and (updated is None or p in updated) for p in self._index.parameters)

    @torch.no_grad()
    def settle(self) -> bool:
        """Complete the last row with what is known only after the update. Returns whether there was such a row."""
        unsettled, self._unsettled = self._unsettled, False
        if unsettled:
            values, measured = self._buffer.stats[-1][1]
            for index, measurement in enumerate(self._measurements):
                if (late := placed(measurement.after_update(), None)) is not None:
                    values[index], measured[index] = late
        return unsettled

    def flush_if_due(self) -> bool:
        """Flush if ``flush_every`` iterations or ``flush_seconds`` have passed. Returns whether a flush was due."""
        if self._copying is not None and self._copying[1].ready():
            self._hand_over()
            self.sink.publish()
        if self.holds:
            return False
        due = len(self._buffer.rows) >= self._flush_at or time.monotonic() - self._last_flush >= self.flush_seconds
        if due and self._buffer.rows:
            self.flush()
        return due

    def log(self, iteration: int, metric: str, value: float, num_samples: int) -> None:
        """Record an evaluation, e.g. ``knn_top1`` as a fraction of ``num_samples`` images (0: unknown)."""
        self._buffer.evals.append((iteration, metric, value, num_samples))

    def scalar(self, iteration: int, name: str, value: float | Tensor) -> None:
        """Record a user-defined scalar. A tensor stays on the device."""
        self._buffer.scalars.append({"iteration": iteration, "value": value})
        self._buffer.names.append(name)

    def close(self, *, settle: bool = True) -> None:
        """Flush everything and remove the hooks. With ``settle=False`` it does not wait for other processes, which may
        have crashed, and the size of the last update stays unknown."""
        self._detach()
        if settle:
            self.settle()
        self._unsettled = False
        self.flush(wait=True)

    def event(self, iteration: int, kind: str, detail: str) -> None:
        """Record an event."""
        self.sink.event(iteration, kind, detail)

    def flush(self, *, wait: bool = False) -> None:
        """Copy all rows to the host and write those that have arrived. ``wait``: return when everything is on disk."""
        if self._copying is not None:
            self._hand_over()
        # Replace the buffer first, so that rows are not written twice if writing fails.
        buffer, self._buffer = self._buffer, Buffer()
        if self._unsettled:  # keep the last row until its update is known
            self._buffer.stats, buffer.stats = buffer.stats[-1:], buffer.stats[:-1]
            self._buffer.rows, buffer.rows = buffer.rows[-1:], buffer.rows[:-1]
            waits = self._buffer.stats[0][0]
            self._buffer.skips = [skip for skip in buffer.skips if skip[0] == waits]
            buffer.skips = [skip for skip in buffer.skips if skip[0] != waits]
        tensors = [tensor for _, stats in buffer.stats for tensor in stats] + [flag for _, flag in buffer.skips]
        tensors += [v for row in (*buffer.rows, *buffer.scalars) for v in row.values() if isinstance(v, Tensor)]
        self._copying = buffer, Transfer(tensors)
        self._last_flush, self._flush_at = time.monotonic(), self.flush_every
        if wait or self._copying[1].ready():
            self._hand_over()
        self.sink.publish(wait)

    def _hand_over(self) -> None:
        """Write the rows that were copied to the host to the sink."""
        assert self._copying is not None
        buffer, transfer = self._copying
        self._copying = None
        arrived = iter(transfer.take())  # in the order in which `flush` listed them
        arrays = [(next(arrived), next(arrived) > 0) for _ in buffer.stats]
        skipped = {t for t, _ in buffer.skips if bool(next(arrived))}
        for row in (*buffer.rows, *buffer.scalars):
            row.update({name: float(next(arrived)) for name, v in row.items() if isinstance(v, Tensor)})
        stats = None
        if arrays:
            values, measured = (np.stack(part) for part in zip(*arrays, strict=True))
            iterations = np.array([t for t, _ in buffer.stats], np.int32)
            stats = LayerStats(self.declared, iterations, values, measured)
            if self.amp_skips:
                skipped |= stats.not_finite()
        for t in sorted(skipped):
            self.event(t, "amp-skip", "the loss scaler skipped this update: a gradient was not finite")
        if stats is not None:
            self._append_stats(stats, skipped, {int(row["iteration"]): row for row in buffer.rows})
        if buffer.rows:
            self.sink.append("iterations", in_columns(buffer.rows))
        if buffer.evals:
            names = ("iteration", "metric", "value", "num_samples")
            self.sink.append("evals", dict(zip(names, map(list, zip(*buffer.evals, strict=True)), strict=True)))
        if buffer.scalars:
            self.sink.append("scalars", in_columns(buffer.scalars) | {"name": buffer.names})

    def _append_stats(self, stats: LayerStats, skipped: set[int], rows: Mapping[int, dict[str, Scalar]]) -> None:
        """Write ``stats`` to the sink and add the norm over all layers to ``rows``."""
        self._note_silence(stats)
        for kind, text in self._checks.look(stats):
            self.found_clipped |= kind == "clipped"
            self.event(int(stats.iterations[-1]), kind, text)
            warnings.warn(text, stacklevel=2)
        self._live |= stats.with_gradient()
        self.num_measured += int(stats.measured[:, stats.of_gradient()].any(axis=(1, 2)).sum())
        stats.drop_gradients(skipped)
        for t, norm in stats.global_norms().items():
            if t in rows:
                rows[t]["grad_norm"] = norm
        self.sink.append("layer_stats", stats.columns(self._live))

    def _note_silence(self, stats: LayerStats) -> None:
        """Warn once about a signal that was never measured."""
        seen = set(stats.measured_names())
        silent = sorted(self._silent - seen) if len(stats.iterations) > 1 else []
        self._silent -= {*seen, *silent}
        for name in silent:
            text = f"{name} was never measured: {self._measurements[self.signals.index(name)].why}"
            self.event(int(stats.iterations[0]), "not-measured", text)
            warnings.warn(text, stacklevel=2)
