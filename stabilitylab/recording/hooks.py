"""Forward hooks that stay with the model they were put on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class ForwardHook:
    """Tells ``note`` the output each time ``module`` runs; with ``before``, that it is about to run.

    A copy of the model (an EMA, say) takes its hooks along: called for a module not its own, this one leaves it.
    """

    def __init__(self, module: nn.Module, note: Callable[[Any], None], *, before: bool = False) -> None:
        self._module, self._note = module, note
        self._handle = (module.register_forward_pre_hook if before else module.register_forward_hook)(self)

    def __call__(self, module: nn.Module, _: Any, output: Any = None) -> None:
        if module is self._module:
            self._note(output)
            return
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if hook is self]:
                del hooks[key]

    def __deepcopy__(self, _: dict[int, Any]) -> ForwardHook:
        return self

    def remove(self) -> None:
        self._handle.remove()
