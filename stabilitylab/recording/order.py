"""Which layer is first and which is last, where the names do not tell: the order in which modules run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from stabilitylab.models.layers import Layer
from stabilitylab.recording.hooks import ForwardHook


class ExecutionOrder:
    """Notes when each parameter's module first runs, until `finish`. ``ran``: whether any module was seen to run."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self._layers = list(layers)
        self._ran: dict[int, int] = {}  # parameter id -> when its module first ran
        self._hooks = [
            ForwardHook(module, partial(self._note, module), before=True)
            for module in model.modules()
            if any(True for _ in module.parameters(recurse=False))
        ]

    @property
    def ran(self) -> bool:
        return bool(self._ran)

    def _note(self, module: nn.Module, _: Any) -> None:
        for parameter in module.parameters(recurse=False):
            self._ran.setdefault(id(parameter), len(self._ran))

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def finish(self) -> list[int]:
        """The depth of each layer, in the order given; layers that never ran come last. Takes the hooks away."""
        self.remove()
        never = len(self._ran)
        first = [min((self._ran.get(id(p), never) for p in x.parameters), default=never) for x in self._layers]
        order = sorted(range(len(first)), key=lambda i: (first[i], self._layers[i].depth))
        depths = [0] * len(order)
        for depth, i in enumerate(order):
            depths[i] = depth
        return depths
