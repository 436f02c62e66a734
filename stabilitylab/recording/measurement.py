"""How a signal is measured: what it may read, what it gives, and where its state lives.

A signal without state is a function of a `Step`; one with state, hooks, or a value that is known only after the
update is a subclass of `Measurement`. ``@measures(name)`` registers either::

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

from stabilitylab.recording.norms import l2_and_largest
from stabilitylab.recording.selection import LayerIndex, Selection, local
from stabilitylab.registry import located
from stabilitylab.signals import SIGNALS


class Measured(NamedTuple):
    """``values`` float and ``measured`` bool, of one shape: (layers,), or (signals, layers) for several signals. Where
    ``measured`` is false the value is meaningless. NaN is a value: that of a gradient that is NaN."""

    values: Tensor
    measured: Tensor


@dataclass
class Step:
    """What the signals of one iteration read.

    ``index``: all recorded parameters. ``chosen``: those that got a gradient. ``held``: those whose weights may
    change. ``scale``: the factor by which the gradients are still scaled.
    """

    index: LayerIndex
    chosen: Selection
    held: Selection
    optimizer: Optimizer | None = None
    scale: float | Tensor | None = None

    @property
    def nothing(self) -> Measured:
        """(layers,): no layer is measured."""
        values = torch.zeros(self.index.num_layers, device=self.held.device)
        return Measured(values, torch.zeros_like(values, dtype=torch.bool))

    @cached_property
    def grads(self) -> list[Tensor]:
        """The entries of each gradient in ``chosen`` that are stored, real, in this process; still scaled."""
        return _entries([p.grad for p in self.chosen.parameters if p.grad is not None])

    @cached_property
    def grad_norms(self) -> Tensor:
        """(2, n) L2 norm and largest absolute entry of each gradient, unscaled."""
        norms = self.chosen.kinds.measure(l2_and_largest, self.grads)
        return norms if self.scale is None else norms / self.scale

    @cached_property
    def weights(self) -> list[Tensor]:
        """The weights of each parameter in ``held``: views, not copies."""
        return [real(p) for p in self.held.parameters]


class Measurement:
    """One signal of one recording, with its state. Override what the signal needs. ``why``: where it was never
    measured, the reason."""

    why = "nothing in the model or the optimizer gives it"

    def attach(self, model: nn.Module, layers: Sequence[str]) -> None:
        """Before training: register forward hooks. ValueError where the model has nothing to measure."""

    def measure(self, step: Step) -> Tensor | Measured | None:
        """(layers,) between ``backward()`` and the optimizer's step.

        A plain tensor is measured wherever a layer has parameters in ``step.chosen`` (``step.held`` for a signal of
        the weights). None: nothing is known, or not before the update.
        """
        return None

    def recorded(self) -> None:
        """The step measured last is now recorded: what it left becomes the state. A step may be measured twice, at the
        end of its backward pass and at the call."""

    def after_update(self) -> Tensor | Measured | None:
        """(layers,) for the iteration measured last, once its update is made; see `measure`."""
        return None

    def detach(self) -> None:
        """Remove all hooks. Calling it again does nothing."""


class _Stateless(Measurement):
    def __init__(self, function: Callable[[Step], Tensor | Measured]) -> None:
        self._function = function

    def measure(self, step: Step) -> Tensor | Measured | None:
        return self._function(step)


_MEASURES: dict[str, Callable[..., Any]] = {}
_F = TypeVar("_F", bound=Callable[..., Any])


def measures(name: str) -> Callable[[_F], _F]:
    """Register a function of a `Step`, or a `Measurement` class, as what measures the signal ``name``."""

    def register(measure: _F) -> _F:
        assert name in SIGNALS, f"declare {name!r} in stabilitylab.signals"
        assert name not in _MEASURES, f"{name!r} is measured twice"
        _MEASURES[name] = measure
        return measure

    return register


def new_measurement(name: str) -> Measurement:
    """A measurement of the signal ``name`` with fresh state. ConfigError for a signal that is not known."""
    measure = located(SIGNALS.choose(name).measure or _MEASURES[name])
    is_class = isinstance(measure, type) and issubclass(measure, Measurement)
    return measure() if is_class else _Stateless(measure)


def real(tensor: Tensor) -> Tensor:
    """This process's entries of a tensor, a complex number as two real ones."""
    tensor = local(tensor)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _entries(gradients: list[Tensor]) -> list[Tensor]:
    # The usual case, thousands of times a second: plain dense tensors need no look at each.
    if set(map(type, gradients)) != {Tensor} or {g.layout for g in gradients} != {torch.strided}:
        gradients = [local(g) for g in gradients]
        gradients = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    return [g.abs() if g.is_complex() else g for g in gradients]
