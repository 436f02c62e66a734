"""The recorder: every layer's gradient at every iteration, kept on the device until the flush."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stabilitylab.models.layers import Layer
from stabilitylab.recording.activations import ForwardMaxima
from stabilitylab.recording.signals import DEFAULT, OF_FORWARD, SIGNALS, LayerIndex, Step, local

Scalar = float | int | Tensor
_OF_WEIGHTS = ("weight_norm", "update_ratio")


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

    A layer without a trainable parameter has no rows. A trainable layer whose parameters got no gradient in
    an iteration has NULL there. Gradients must be unscaled (AMP) and not yet clipped.

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
        recorded = [(i, layer) for i, layer in enumerate(layers) if layer.trainable and log_grads]
        self.layer_ids = np.array([i for i, _ in recorded], np.int16)
        self.signals = tuple(signals)
        self._index = LayerIndex([_trainable(layer) for _, layer in recorded])
        self._sink, self._log_grads = sink, log_grads and bool(recorded)
        self._optimizer = optimizer
        self.every, self.flush_every, self.flush_seconds = every, flush_every, flush_seconds
        self._stats: list[tuple[int, Tensor]] = []
        self._rows: list[dict[str, float | int | Tensor]] = []
        self._evals: list[tuple[int, str, float, int]] = []
        self._scalars: list[tuple[int, str, float | Tensor]] = []
        self._last_flush = time.monotonic()
        self._amp_skips = amp_skips
        self._skips: list[tuple[int, Tensor]] = []
        self._skipped: set[int] = set()
        self._before: list[Tensor] | None = None
        of_forward = [name for name in signals if name in OF_FORWARD]
        self._forward = None
        if of_forward:
            assert model is not None, "activation and attention maxima need the model"
            self._forward = ForwardMaxima(model, [layer.name for _, layer in recorded], of_forward)

    def has_gradient(self) -> bool:
        """Whether any recorded parameter has a gradient now."""
        return any(p.grad is not None for p in self._index.parameters)

    @torch.no_grad()
    def step(
        self,
        iteration: int,
        *,
        stats: Tensor | None = None,
        grad_scale: float | Tensor = 1.0,
        skipped: Tensor | None = None,
        **scalars: Scalar,
    ) -> None:
        """Record one iteration. ``scalars`` are columns of the table ``iterations``; a tensor stays on the device.
        ``stats``: what `measure` gave, where the gradients are no longer what they were. ``grad_scale``: by how
        much the gradients are scaled still. ``skipped``: whether a loss scaler skips this update, where it is known."""
        row: dict[str, Scalar] = {"iteration": iteration, **scalars}
        if skipped is not None:
            self._skips.append((iteration, skipped))
        self.settle()
        if self._log_grads and iteration % self.every == 0:
            stats = self.measure() if stats is None else stats
            if stats is not None:
                for index, name in enumerate(self.signals):
                    if name in ("grad_norm", "grad_max"):
                        stats[index] = torch.where(stats[index] < 0, -1.0, stats[index] / grad_scale)
                self._stats.append((iteration, stats))
                if "grad_norm" in self.signals:
                    norms_now = stats[self.signals.index("grad_norm")]
                    row["grad_norm"] = torch.linalg.vector_norm(norms_now.clamp(min=0))
                if "update_ratio" in self.signals:
                    self._before = [local(p).clone() for p in self._index.parameters]
        self._rows.append(row)

    @torch.no_grad()
    def measure(self) -> Tensor | None:
        """(signals, layers) on the device; -1 marks what is not measured. None where no parameter has a gradient."""
        which = [i for i, p in enumerate(self._index.parameters) if p.grad is not None]
        if not which:
            return None
        step = Step(self._index, which, self._optimizer)
        rows = []
        for name in self.signals:
            if name == "update_ratio":
                rows.append(step.owner.new_full((self._index.num_layers,), -1.0, dtype=torch.float32))
            elif name in OF_FORWARD:
                assert self._forward is not None
                rows.append(self._forward.take(name, step.owner.device))
            else:
                rows.append(SIGNALS[name](step))
        stats = torch.stack(rows)
        if len(which) < len(self._index.parameters):
            seen = torch.zeros(self._index.num_layers, dtype=torch.bool, device=stats.device)
            seen.index_fill_(0, step.owner, True)
            kept = torch.tensor([name in _OF_WEIGHTS for name in self.signals], device=stats.device)[:, None]
            stats = torch.where(seen | kept, stats, -1.0)
        return stats

    @torch.no_grad()
    def settle(self) -> None:
        """The last update is made: its size is known now. Called by the next ``step`` at the latest."""
        if self._before is None or not self._stats:
            return
        step = Step(self._index, [], before=self._before)
        self._stats[-1][1][self.signals.index("update_ratio")] = SIGNALS["update_ratio"](step)
        self._before = None

    def flush_if_due(self) -> bool:
        """Flush when ``flush_every`` iterations or ``flush_seconds`` have gone by. True if it did."""
        due = len(self._rows) >= self.flush_every or time.monotonic() - self._last_flush >= self.flush_seconds
        if due and self._rows:
            self.flush()
        return due

    def log(self, iteration: int, metric: str, value: float, num_samples: int) -> None:
        """Record an evaluation, e.g. ``knn_top1`` as a fraction of ``num_samples`` images (0: unknown)."""
        self._evals.append((iteration, metric, value, num_samples))

    def scalar(self, iteration: int, name: str, value: float | Tensor) -> None:
        """Record a number of the user's own. A tensor stays on the device."""
        self._scalars.append((iteration, name, value))

    @torch.no_grad()
    def close(self) -> None:
        """Flush all there is and take hooks away."""
        self.settle()
        self.flush()
        if self._forward is not None:
            self._forward.remove()

    def event(self, iteration: int, kind: str, detail: str) -> None:
        """Record that something happened."""
        self._sink.event(iteration, kind, detail)

    def flush(self, *, wait: bool = False) -> None:
        """Hand everything to the sink: one transfer for the layers' statistics, one for the scalars. ``wait``:
        until it is on disk."""
        # An update whose size is not known yet waits for it.
        held = self._stats[-1:] if self._before is not None else []
        stats = self._stats[: len(self._stats) - len(held)]
        self._note_skips()
        if stats:
            iterations = np.array([t for t, _ in stats], np.int32)
            values = torch.stack([s for _, s in stats]).cpu().numpy()  # (T, signals, layers)
            self._mask_skips(iterations, values)
            num_layers = len(self.layer_ids)
            columns: dict[str, object] = {
                "iteration": np.repeat(iterations, num_layers),
                "layer_id": np.tile(self.layer_ids, len(iterations)),
            }
            for index, name in enumerate(self.signals):
                column = values[:, index].ravel()
                columns[name] = np.ma.masked_array(column, column < 0)
            self._sink.append("layer_stats", columns)
        if self._rows:
            self._sink.append("iterations", _columns(self._rows))
        if self._evals:
            names = ("iteration", "metric", "value", "num_samples")
            self._sink.append("evals", dict(zip(names, map(list, zip(*self._evals, strict=True)), strict=True)))
        if self._scalars:
            self._sink.append(
                "scalars",
                _columns([{"iteration": t, "value": v} for t, _, v in self._scalars])
                | {"name": [name for _, name, _ in self._scalars]},
            )
        self._stats, self._rows, self._evals, self._scalars = held, [], [], []
        self._last_flush = time.monotonic()
        self._sink.publish(wait)

    def _note_skips(self) -> None:
        """Updates that a loss scaler is known to have skipped are events."""
        if self._skips:
            flags = torch.stack([flag for _, flag in self._skips]).tolist()
            for (iteration, _), skipped in zip(self._skips, flags, strict=True):
                if skipped:
                    self._skip(iteration)
            self._skips = []

    def _mask_skips(self, iterations: np.ndarray, values: np.ndarray) -> None:
        """What was measured of a gradient whose update was skipped is no spike: NULL."""
        of_gradient = [i for i, name in enumerate(self.signals) if name not in _OF_WEIGHTS]
        if self._amp_skips:
            infinite = ~np.isfinite(values[:, of_gradient]).all(axis=(1, 2))
            for iteration in iterations[infinite].tolist():
                self._skip(iteration)
        skipped = np.isin(iterations, list(self._skipped))
        values[np.ix_(np.flatnonzero(skipped), np.array(of_gradient, np.int64))] = -1.0
        for row in self._rows:
            if row["iteration"] in self._skipped:
                row.pop("grad_norm", None)
        self._skipped -= set(iterations.tolist())

    def _skip(self, iteration: int) -> None:
        if iteration not in self._skipped:
            self._skipped.add(iteration)
            self.event(iteration, "amp-skip", "the loss scaler skipped this update: a gradient was not finite")


def _trainable(layer: Layer) -> list[nn.Parameter]:
    return [p for p in layer.parameters if p.requires_grad]


def _columns(rows: list[dict[str, float | int | Tensor]]) -> dict[str, object]:
    """Rows to columns. Tensors of a column are fetched together; a row without the column is masked."""
    columns: dict[str, object] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name) for row in rows]
        tensors = [(i, v) for i, v in enumerate(values) if isinstance(v, Tensor)]
        if tensors:
            fetched = torch.stack([v.detach().float() for _, v in tensors]).cpu().tolist()
            for (i, _), value in zip(tensors, fetched, strict=True):
                values[i] = value
        mask = [v is None for v in values]
        filled = np.array([0 if v is None else v for v in values])
        columns[name] = np.ma.masked_array(filled, mask) if any(mask) else filled
    return columns
