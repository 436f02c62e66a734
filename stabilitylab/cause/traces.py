"""The gradient norms, the loss and the metric of a replayed future."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stabilitylab.models.layers import Layer
from stabilitylab.recording.recorder import Recorder
from stabilitylab.recording.sink import NullSink


@dataclass(frozen=True)
class Trace:
    """T iterations of one future. ``norms`` (T, L): gradient norm of each layer, NaN without a gradient. ``loss`` (T,).
    ``metric``: number of iterations made -> value of the metric."""

    norms: np.ndarray
    loss: np.ndarray
    metric: dict[int, float]


class NormRecorder(Recorder):
    """Keeps the gradient norms and the loss of each step in memory. ``on_gradient(iteration)`` is called after the
    norms are measured and before the optimizer uses the gradient."""

    def __init__(self, layers: Sequence[Layer], on_gradient: Callable[[int], None] | None = None) -> None:
        super().__init__(layers, NullSink(), signals=("grad_norm",))
        self.on_gradient = on_gradient
        self._norms: list[Tensor] = []
        self._losses: list[Tensor] = []

    def step(self, iteration: int, **given: Any) -> None:
        measured = self.measure()
        self._norms.append(torch.where(measured.measured[0], measured.values[0], torch.nan))
        self._losses.append(given["loss"])
        if self.on_gradient is not None:
            self.on_gradient(iteration)

    def trace(self, metric: dict[int, float]) -> Trace:
        norms = torch.stack(self._norms).double().cpu().numpy()
        return Trace(norms, torch.stack(self._losses).double().cpu().numpy(), metric)
