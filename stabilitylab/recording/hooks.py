"""Forward hooks that act only on the module they were registered on, not on its copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class ForwardHook:
    """Calls ``note`` with the output after each forward pass of ``module``.

    A deep copy of the model, such as an EMA, also copies its hooks: when called for another module, the hook removes
    itself from it.
    """

    def __init__(self, module: nn.Module, note: Callable[[Any], None]) -> None:
        self._module, self._note = module, note
        self._handle = module.register_forward_hook(self)

    def __call__(self, module: nn.Module, _: Any, output: Any = None) -> None:
        if module is self._module:
            self._note(output)
        else:
            _remove_from(module, self)

    def __deepcopy__(self, _: dict[int, Any]) -> ForwardHook:
        return self

    def remove(self) -> None:
        self._handle.remove()


class StartHook:
    """Calls ``note`` before each forward pass of ``module``. The argument is whether torch.compile is tracing it.

    A traced hook is a constant in the graph: it costs nothing and does not run again. Removing it would trigger a
    recompilation.
    """

    def __init__(self, module: nn.Module, note: Callable[[bool], None]) -> None:
        self._module = module

        @torch.compiler.assume_constant_result
        def traced() -> int:
            note(True)
            return 0

        self._traced, self._eager = traced, note
        self._handle = module.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, _: Any) -> None:
        if torch.compiler.is_compiling():
            self._traced()
        elif module is self._module:
            self._eager(False)
        else:
            _remove_from(module, self)

    def __deepcopy__(self, _: dict[int, Any]) -> StartHook:
        return self

    def remove(self) -> None:
        self._handle.remove()


def _remove_from(module: nn.Module, hook: object) -> None:
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, value in hooks.items() if value is hook]:
            del hooks[key]
