"""The interface for measuring a signal.

A stateless signal is a function of a `Step`. A signal with state, with hooks, or with a value that is known only after
the update is a subclass of `Measurement`. ``@measures(name)`` registers either::

    @measures("grad_norm")
    def grad_norm(step: Step) -> Tensor:
        return step.chosen.l2(step.grad_norms[0])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stabilitylab.recording.norms import l2_and_largest, l2_norms
from stabilitylab.recording.selection import LayerIndex, Selection, local
from stabilitylab.registry import located
from stabilitylab.signals import SIGNALS


class Measured(NamedTuple):
    """``values`` float and ``measured`` bool of the same shape: (layers,), or (signals, layers) for several signals.
    Where ``measured`` is false, the value is meaningless. NaN is a valid value: the gradient itself is NaN."""

    values: Tensor
    measured: Tensor


@dataclass
class Step:
    """The inputs for measuring the signals of one iteration.

    ``index``: all recorded parameters. ``chosen``: those that got a gradient. ``held``: those that the optimizer may
    update. ``scale``: the loss scale still contained in the gradients. ``settled``: whether `after_update` of the
    previous update has just been called, so that the weights have not changed since.
    """

    index: LayerIndex
    chosen: Selection
    held: Selection
    optimizer: Optimizer | None = None
    scale: float | Tensor | None = None
    settled: bool = False

    @property
    def nothing(self) -> Measured:
        """(layers,) with no layer measured."""
        values = torch.zeros(self.index.num_layers, device=self.held.device)
        return Measured(values, torch.zeros_like(values, dtype=torch.bool))

    @cached_property
    def grads(self) -> list[Tensor]:
        """The stored entries of each gradient in ``chosen``: this process's shard, real, still scaled."""
        return _entries([p.grad for p in self.chosen.parameters if p.grad is not None])

    @cached_property
    def grad_norms(self) -> Tensor:
        """(2, n): L2 norm and largest absolute entry of each gradient, unscaled."""
        norms = self.chosen.kinds.measure(l2_and_largest, self.grads)
        return norms if self.scale is None else norms / self.scale

    @cached_property
    def weights(self) -> list[Tensor]:
        """The weights of each parameter in ``held``, as views."""
        return [real(p) for p in self.held.parameters]

    @cached_property
    def weight_norms(self) -> Tensor:
        """(n,): L2 norm of each parameter in ``held``."""
        return self.held.kinds.measure(l2_norms, self.weights)[0]


class Measurement:
    """One signal of one recording, with its state. Override the methods that the signal needs. ``why`` is the reason
    reported if it was never measured."""

    why = "neither the model nor the optimizer provides it"

    def attach(self, model: nn.Module, layers: Sequence[str]) -> None:
        """Register forward hooks before training. Raises ValueError if the model has nothing to measure."""

    def prepare(self, step: Step) -> None:
        """Called before any signal is measured. Can set values of ``step`` that are already known, to save a pass."""

    def measure(self, step: Step) -> Tensor | Measured | None:
        """The value per layer, (layers,), between ``backward()`` and the optimizer step.

        A plain tensor counts as measured for each layer that has parameters in ``step.chosen`` (``step.held`` for a
        signal of the weights). None: the value is not available, or not before the update.
        """
        return None

    def recorded(self) -> None:
        """Called when the last measured step is recorded; update the state here. A step may be measured twice: at the
        end of its backward pass and in ``Recorder.step``."""

    def after_update(self) -> Tensor | Measured | None:
        """The value per layer, (layers,), of the last measured iteration, after its update; see `measure`."""
        return None

    def detach(self) -> None:
        """Remove all hooks. Idempotent."""


class _Stateless(Measurement):
    def __init__(self, function: Callable[[Step], Tensor | Measured]) -> None:
        self._function = function

    def measure(self, step: Step) -> Tensor | Measured | None:
        return self._function(step)


_MEASURES: dict[str, Callable[..., Any]] = {}
_F = TypeVar("_F", bound=Callable[..., Any])


def measures(name: str) -> Callable[[_F], _F]:
    """Decorator that registers a function of a `Step`, or a `Measurement` subclass, for the signal ``name``."""

    def register(measure: _F) -> _F:
        assert name in SIGNALS, f"declare {name!r} in stabilitylab.signals"
        assert name not in _MEASURES, f"{name!r} is measured twice"
        _MEASURES[name] = measure
        return measure

    return register


def new_measurement(name: str) -> Measurement:
    """Create a measurement of the signal ``name``. Raises ConfigError for an unknown signal."""
    measure = located(SIGNALS.choose(name).measure or _MEASURES[name])
    is_class = isinstance(measure, type) and issubclass(measure, Measurement)
    return measure() if is_class else _Stateless(measure)


_PLAIN = (Tensor, nn.Parameter)


def real(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, without its graph; complex entries become two real ones."""
    if tensor.is_cuda and type(tensor) in _PLAIN and not tensor.is_complex():
        return tensor  # nothing here builds a graph, and a view of each tensor costs more than a fused kernel for all
    tensor = local(tensor)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _entries(gradients: list[Tensor]) -> list[Tensor]:
    # Fast path, since this runs at every step: plain dense tensors need no conversion.
    if set(map(type, gradients)) != {Tensor} or {g.layout for g in gradients} != {torch.strided}:
        gradients = [local(g) for g in gradients]
        gradients = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    return [g.abs() if g.is_complex() else g for g in gradients]
