"""The recorder: every layer's gradient at every iteration, kept on the device until the flush."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stabilitylab.models.layers import Layer
from stabilitylab.recording.activations import ForwardMaxima
from stabilitylab.recording.buffer import Buffer, Scalar, in_columns
from stabilitylab.recording.selection import LayerIndex, Selection
from stabilitylab.recording.signals import DEFAULT, OF_FORWARD, OF_WEIGHTS, SIGNALS, Step
from stabilitylab.recording.transfer import Transfer


class Sink(Protocol):
    """Where flushed rows go; `stabilitylab.store.writer.RunWriter` is one."""

    def append(self, table: str, columns: Mapping[str, object]) -> None: ...
    def event(self, iteration: int, kind: str, detail: str) -> None: ...
    def publish(self, wait: bool = False) -> None: ...


class NullSink:
    """Keeps nothing: for the processes of a training that do not record."""

    def append(self, table: str, columns: Mapping[str, object]) -> None: ...
    def event(self, iteration: int, kind: str, detail: str) -> None: ...
    def publish(self, wait: bool = False) -> None: ...


class Recorder:
    """Records layer statistics between ``backward()`` and the optimizer's step.

    A layer has rows from the flush on in which a parameter of it is trainable, or gets a gradient. One that got no
    gradient in an iteration has NULL there. Gradients must be unscaled (AMP) and not yet clipped.

    ``layers``: as `group_layers` gives them. ``signals``: names of `SIGNALS` and `OF_FORWARD`; the latter need
    ``model``, ``adam_rms`` needs ``optimizer``. ``every``: record each how many iterations. ``flush_every`` and
    ``flush_seconds`` bound what a crash may cost. ``amp_skips``: a loss scaler skips updates whose gradient is
    not finite; such an iteration is an event, ``amp-skip``, and its gradient statistics are NULL.
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
        self._live = np.array([layer.trainable for layer in layers], bool)
        self.log_grads = log_grads and bool(self._live.any())
        self._optimizer = optimizer
        self.every, self.flush_every, self.flush_seconds = every, flush_every, flush_seconds
        self._buffer = Buffer()
        self._copying: tuple[Buffer, Transfer] | None = None
        self._last_flush = time.monotonic()
        self._amp_skips = amp_skips
        self._reads_weights = any(name in OF_WEIGHTS for name in signals)
        self._before: tuple[Selection, list[Tensor]] | None = None
        self._silent = set(self.signals)  # nothing was measured of them yet
        of_forward = [name for name in signals if name in OF_FORWARD]
        self._forward = None
        if of_forward and self.log_grads:
            assert model is not None, "activation and attention maxima need the model"
            self._forward = ForwardMaxima(model, [layer.name for layer in layers], of_forward)

    def has_gradient(self) -> bool:
        """Whether any recorded parameter has a gradient now."""
        return any(p.grad is not None for p in self._index.parameters)

    @torch.no_grad()
    def step(
        self,
        iteration: int,
        *,
        stats: Tensor | None = None,
        grad_scale: float | Tensor | None = None,
        optimizer: Optimizer | None = None,
        skipped: Tensor | None = None,
        **scalars: Scalar,
    ) -> None:
        """Record one iteration. ``scalars`` are columns of the table ``iterations``; a tensor stays on the device.
        ``stats``: what `measure` gave, where the gradients are no longer what they were. ``grad_scale``,
        ``optimizer``: as in `measure`. ``skipped``: whether a loss scaler skips this update, where it is known."""
        self.settle()
        if skipped is not None:
            self._buffer.skips.append((iteration, skipped))
        if self.log_grads and iteration % self.every == 0:
            stats = self.measure(grad_scale=grad_scale, optimizer=optimizer) if stats is None else stats
            self._buffer.stats.append((iteration, stats))
            if "update_ratio" in self.signals:
                held = self._held(optimizer)
                self._before = held, [w.clone() for w in Step(self._index, held, held).weights]
        self._buffer.rows.append({"iteration": iteration, **scalars})

    @torch.no_grad()
    def measure(self, *, grad_scale: float | Tensor | None = None, optimizer: Optimizer | None = None) -> Tensor:
        """(signals, layers) on the device; -1 marks what is not measured. ``grad_scale``: by how much the gradients
        are scaled still. ``optimizer``: measure its parameters alone, the others' gradients are not of this step."""
        parameters = self._index.parameters
        reached = [p.grad is not None for p in parameters]
        if optimizer is not None:
            mine = set(self._held(optimizer).parameters)
            reached = [yes and p in mine for yes, p in zip(reached, parameters, strict=True)]
        chosen = self._index.select(reached)
        # Where no weights are read, a thousand parameters need not be asked twice.
        held = self._held(optimizer) if self._reads_weights or not chosen.parameters else chosen
        step = Step(self._index, chosen, held, optimizer or self._optimizer, grad_scale)
        nothing = torch.full((self._index.num_layers,), -1.0, device=held.device)
        rows = []
        for name in self.signals:
            selection = held if name in OF_WEIGHTS else chosen
            if name == "update_ratio":
                rows.append(nothing)
            elif name in OF_FORWARD:
                assert self._forward is not None
                rows.append(self._forward.take(name, held.device))
            elif selection.parameters:
                rows.append(torch.where(selection.seen, SIGNALS[name](step), -1.0))
            else:
                rows.append(nothing)
        return torch.stack(rows)

    def _held(self, optimizer: Optimizer | None) -> Selection:
        """The parameters whose weights may change in this step."""
        mine = None if optimizer is None else {p for group in optimizer.param_groups for p in group["params"]}
        return self._index.select(p.requires_grad and (mine is None or p in mine) for p in self._index.parameters)

    @torch.no_grad()
    def settle(self) -> None:
        """The last update is made: its size is known now. Called by the next ``step`` at the latest."""
        if self._before is None:
            return
        held, before = self._before
        self._before = None
        ratio = SIGNALS["update_ratio"](Step(self._index, held, held, before=before))
        self._buffer.stats[-1][1][self.signals.index("update_ratio")] = torch.where(held.seen, ratio, -1.0)

    def flush_if_due(self) -> bool:
        """Flush when ``flush_every`` iterations or ``flush_seconds`` have gone by. True if it did."""
        if self._copying is not None and self._copying[1].ready():
            self._hand_over()
            self.sink.publish()
        due = len(self._buffer.rows) >= self.flush_every or time.monotonic() - self._last_flush >= self.flush_seconds
        if due and self._buffer.rows:
            self.flush()
        return due

    def log(self, iteration: int, metric: str, value: float, num_samples: int) -> None:
        """Record an evaluation, e.g. ``knn_top1`` as a fraction of ``num_samples`` images (0: unknown)."""
        self._buffer.evals.append((iteration, metric, value, num_samples))

    def scalar(self, iteration: int, name: str, value: float | Tensor) -> None:
        """Record a number of the user's own. A tensor stays on the device."""
        self._buffer.scalars.append({"iteration": iteration, "value": value})
        self._buffer.names.append(name)

    def close(self, *, settle: bool = True) -> None:
        """Flush all there is and take hooks away. Without ``settle`` no other process is waited for: one may have
        crashed, and the size of the last update stays unknown."""
        if self._forward is not None:
            self._forward.remove()
        if settle:
            self.settle()
        self._before = None
        self.flush(wait=True)

    def event(self, iteration: int, kind: str, detail: str) -> None:
        """Record that something happened."""
        self.sink.event(iteration, kind, detail)

    def flush(self, *, wait: bool = False) -> None:
        """Send everything to the host in one copy, and what has arrived to the sink. ``wait``: until it is on disk."""
        if self._copying is not None:
            self._hand_over()
        # What is handed over leaves the buffer first: should it fail, it is not written twice.
        buffer, self._buffer = self._buffer, Buffer()
        if self._before is not None:  # an update whose size is not known yet waits for it
            self._buffer.stats, buffer.stats = buffer.stats[-1:], buffer.stats[:-1]
            self._buffer.rows, buffer.rows = buffer.rows[-1:], buffer.rows[:-1]
            waits = self._buffer.stats[0][0]
            self._buffer.skips = [skip for skip in buffer.skips if skip[0] == waits]
            buffer.skips = [skip for skip in buffer.skips if skip[0] != waits]
        tensors = [stats for _, stats in buffer.stats] + [flag for _, flag in buffer.skips]
        tensors += [v for row in (*buffer.rows, *buffer.scalars) for v in row.values() if isinstance(v, Tensor)]
        self._copying = buffer, Transfer(tensors)
        self._last_flush = time.monotonic()
        if wait or self._copying[1].ready():
            self._hand_over()
        self.sink.publish(wait)

    def _hand_over(self) -> None:
        """Give what was copied to the sink."""
        assert self._copying is not None
        buffer, transfer = self._copying
        self._copying = None
        arrived = iter(transfer.take())  # in the order in which `flush` listed them
        values = np.stack([next(arrived) for _ in buffer.stats]) if buffer.stats else None  # (T, signals, layers)
        skipped = {t for t, _ in buffer.skips if bool(next(arrived))}
        for row in (*buffer.rows, *buffer.scalars):
            row.update({name: float(next(arrived)) for name, v in row.items() if isinstance(v, Tensor)})
        iterations = np.array([t for t, _ in buffer.stats], np.int32)
        if values is not None:
            skipped |= self._unscalable(iterations, values)
        for t in sorted(skipped):
            self.event(t, "amp-skip", "the loss scaler skipped this update: a gradient was not finite")
        if values is not None:
            self._append_stats(iterations, values, skipped, {int(row["iteration"]): row for row in buffer.rows})
        if buffer.rows:
            self.sink.append("iterations", in_columns(buffer.rows))
        if buffer.evals:
            names = ("iteration", "metric", "value", "num_samples")
            self.sink.append("evals", dict(zip(names, map(list, zip(*buffer.evals, strict=True)), strict=True)))
        if buffer.scalars:
            self.sink.append("scalars", in_columns(buffer.scalars) | {"name": buffer.names})

    def _unscalable(self, iterations: np.ndarray, values: np.ndarray) -> set[int]:
        """The iterations that a loss scaler skips, as far as what was measured tells."""
        if not self._amp_skips:
            return set()
        bad = np.zeros(len(iterations), bool)
        for index, name in enumerate(self.signals):
            if name in ("grad_norm", "grad_max", "adam_rms"):
                bad |= ~np.isfinite(values[:, index]).all(axis=1)
            elif name == "nonfinite":
                bad |= (values[:, index] > 0).any(axis=1)
        return set(iterations[bad].tolist())

    def _append_stats(
        self, iterations: np.ndarray, values: np.ndarray, skipped: set[int], rows: Mapping[int, dict[str, Scalar]]
    ) -> None:
        """Rows of layers; the norm over all layers goes to ``rows``, by iteration."""
        self._note_silence(iterations, values)
        of_gradient = [i for i, name in enumerate(self.signals) if name in ("grad_norm", "grad_max", "adam_rms")]
        # What was measured of a gradient whose update was skipped is no spike: NULL. Its share of NaN is what it is.
        for index in of_gradient:
            values[np.isin(iterations, list(skipped)), index] = -1.0
        if "grad_norm" in self.signals:
            norms = values[:, self.signals.index("grad_norm")].astype(np.float64)
            measured = ~(norms < 0).all(axis=1)
            with np.errstate(invalid="ignore"):
                totals = np.sqrt((np.where(norms < 0, 0.0, norms) ** 2).sum(axis=1))
            for t, total in zip(iterations[measured].tolist(), totals[measured].tolist(), strict=True):
                if t in rows:
                    rows[t]["grad_norm"] = total
        reached = [i for i, name in enumerate(self.signals) if name not in (*OF_WEIGHTS, *OF_FORWARD)]
        self._live |= ~(values[:, reached] < 0).all(axis=(0, 1))
        layers = np.flatnonzero(self._live).astype(np.int16)
        columns: dict[str, object] = {
            "iteration": np.repeat(iterations, len(layers)),
            "layer_id": np.tile(layers, len(iterations)),
        }
        for index, name in enumerate(self.signals):
            column = values[:, index, layers].ravel()
            columns[name] = np.ma.masked_array(column, column < 0)
        self.sink.append("layer_stats", columns)

    def _note_silence(self, iterations: np.ndarray, values: np.ndarray) -> None:
        """A signal that nothing gives is said once, not left as an empty column."""
        for name in sorted(self._silent):
            if not (values[:, self.signals.index(name)] < 0).all():
                self._silent.discard(name)
            elif len(iterations) > 1:
                self._silent.discard(name)
                text = f"{name} was never measured: nothing in the model or the optimizer gives it"
                self.event(int(iterations[0]), "not-measured", text)
                warnings.warn(text, stacklevel=2)
