"""Which layer is first and which is last, where the names do not tell: the order in which modules run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from stabilitylab.models.layers import Layer

_TELLING = ("patch_embed", "conv1", "embeddings", "stem", "tokens")


def names_tell_the_order(layers: Sequence[Layer]) -> bool:
    """Whether the first name is one that stands at the input of a network."""
    return bool(layers) and layers[0].name.split(".")[0] in _TELLING


class ExecutionOrder:
    """Notes when each parameter's module first runs, until `finish`."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self._layers = list(layers)
        self._ran: dict[int, int] = {}  # parameter id -> when its module first ran
        self._hooks = [
            module.register_forward_pre_hook(self._note)
            for module in model.modules()
            if any(True for _ in module.parameters(recurse=False))
        ]

    def _note(self, module: nn.Module, _: Any) -> None:
        for parameter in module.parameters(recurse=False):
            self._ran.setdefault(id(parameter), len(self._ran))

    def finish(self) -> list[int]:
        """The depth of each layer, in the order given; layers that never ran come last. Takes the hooks away."""
        for hook in self._hooks:
            hook.remove()
        never = len(self._ran)
        first = [min((self._ran.get(id(p), never) for p in x.parameters), default=never) for x in self._layers]
        order = sorted(range(len(first)), key=lambda i: (first[i], self._layers[i].depth))
        depths = [0] * len(order)
        for depth, i in enumerate(order):
            depths[i] = depth
        return depths
