"""The recorder: every layer's gradient at every iteration, kept on the device until the flush."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stabilitylab.models.layers import Layer
from stabilitylab.recording.signals import LayerIndex, l2, largest, norms

SIGNALS = ("grad_norm", "grad_max", "weight_norm")


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

    ``layers``: as `group_layers` gives them. ``every``: record each how many iterations. ``flush_every`` and
    ``flush_seconds`` bound what a crash may cost. ``amp_skips``: a loss scaler skips updates whose gradient is
    not finite; such an iteration is an event, ``amp-skip``, and its statistics are NULL.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        sink: Sink,
        *,
        log_grads: bool = True,
        every: int = 1,
        flush_every: int = 200,
        flush_seconds: float = 5.0,
        amp_skips: bool = False,
    ) -> None:
        recorded = [(i, layer) for i, layer in enumerate(layers) if layer.trainable and log_grads]
        self.layer_ids = np.array([i for i, _ in recorded], np.int16)
        self._index = LayerIndex([_trainable(layer) for _, layer in recorded])
        self._sink, self._log_grads = sink, log_grads and bool(recorded)
        self.every, self.flush_every, self.flush_seconds = every, flush_every, flush_seconds
        self._stats: list[tuple[int, Tensor]] = []
        self._rows: list[dict[str, float | int | Tensor]] = []
        self._evals: list[tuple[int, str, float, int]] = []
        self._last_flush = time.monotonic()
        self._amp_skips = amp_skips
        self._owners: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def step(self, iteration: int, **scalars: float | int | Tensor) -> None:
        """Record one iteration. ``scalars`` are columns of the table ``iterations``; a tensor stays on the device."""
        row: dict[str, float | int | Tensor] = {"iteration": iteration, **scalars}
        with_gradient = [i for i, p in enumerate(self._index.parameters) if p.grad is not None]
        if self._log_grads and iteration % self.every == 0 and with_gradient:
            stats = self._measure(with_gradient)
            self._stats.append((iteration, stats))
            row["grad_norm"] = torch.linalg.vector_norm(stats[0].clamp(min=0))
        self._rows.append(row)

    def flush_if_due(self) -> bool:
        """Flush when ``flush_every`` iterations or ``flush_seconds`` have gone by. True if it did."""
        due = len(self._rows) >= self.flush_every or time.monotonic() - self._last_flush >= self.flush_seconds
        if due and self._rows:
            self.flush()
        return due

    def log(self, iteration: int, metric: str, value: float, num_samples: int) -> None:
        """Record an evaluation, e.g. ``knn_top1`` as a fraction of ``num_samples`` images."""
        self._evals.append((iteration, metric, value, num_samples))

    def event(self, iteration: int, kind: str, detail: str) -> None:
        """Record that something happened."""
        self._sink.event(iteration, kind, detail)

    def flush(self, *, wait: bool = False) -> None:
        """Hand everything to the sink: one transfer for the layers' statistics, one for the scalars. ``wait``:
        until it is on disk."""
        if self._stats:
            iterations = np.array([t for t, _ in self._stats], np.int32)
            values = torch.stack([s for _, s in self._stats]).cpu().numpy()  # (T, signals, layers)
            if self._amp_skips:
                self._mask_skips(iterations, values)
            num_layers = len(self.layer_ids)
            columns: dict[str, object] = {
                "iteration": np.repeat(iterations, num_layers),
                "layer_id": np.tile(self.layer_ids, len(iterations)),
            }
            missing = values[:, 0].ravel() < 0
            for index, name in enumerate(SIGNALS):
                columns[name] = np.ma.masked_array(values[:, index].ravel(), missing & (name != "weight_norm"))
            self._sink.append("layer_stats", columns)
        if self._rows:
            self._sink.append("iterations", _columns(self._rows))
        if self._evals:
            names = ("iteration", "metric", "value", "num_samples")
            self._sink.append("evals", dict(zip(names, map(list, zip(*self._evals, strict=True)), strict=True)))
        self._stats, self._rows, self._evals = [], [], []
        self._last_flush = time.monotonic()
        self._sink.publish(wait)

    def _mask_skips(self, iterations: np.ndarray, values: np.ndarray) -> None:
        skipped = ~np.isfinite(values[:, :2]).all(axis=(1, 2))
        for iteration in iterations[skipped].tolist():
            self.event(iteration, "amp-skip", "the loss scaler skipped this update: a gradient was not finite")
        values[skipped, :2] = -1.0
        by_iteration = dict(zip(iterations.tolist(), skipped.tolist(), strict=True))
        for row in self._rows:
            if by_iteration.get(int(row["iteration"])):
                row.pop("grad_norm", None)

    def _measure(self, with_gradient: list[int]) -> Tensor:
        """(signals, layers); -1 marks a layer that got no gradient."""
        parameters = self._index.parameters
        grads = [parameters[i].grad for i in with_gradient]
        owner = self._owner(with_gradient)
        count = self._index.num_layers
        grad_norm = l2(norms(grads, 2), owner, count)  # type: ignore[arg-type]
        grad_max = largest(norms(grads, float("inf")), owner, count)  # type: ignore[arg-type]
        if len(with_gradient) < len(parameters):
            seen = torch.zeros(count, dtype=torch.bool, device=owner.device).index_fill_(0, owner, True)
            grad_norm, grad_max = torch.where(seen, grad_norm, -1.0), torch.where(seen, grad_max, -1.0)
        every = self._owner(range(len(parameters)))
        return torch.stack([grad_norm, grad_max, l2(norms(parameters, 2), every, count)])

    def _owner(self, which: Sequence[int]) -> Tensor:
        key = tuple(which)
        if key not in self._owners:
            self._owners[key] = self._index.owner(which, self._index.parameters[0].device)
        return self._owners[key]


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
