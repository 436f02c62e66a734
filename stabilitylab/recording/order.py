"""The order of layers from input to output, observed from a training step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from stabilitylab.models.layers import Layer, is_tokens
from stabilitylab.recording.hooks import StartHook


class ExecutionOrder:
    """Observes the first training step and, after that, only the layers that it skipped (an expert, a dropped layer).

    Layers are ordered by when their first module starts. Parameters owned directly by a module that contains layers
    (tokens, a temperature) have no start; they are placed by when the backward pass reaches them. Ties keep the given
    order. ``ran``: whether any module was seen to run.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self._layers = list(layers)
        self._owner = {id(p): i for i, layer in enumerate(layers) for p in layer.parameters}
        self._started: dict[str, int] = {}  # module -> position of its first start
        self._backward: dict[int, None] = {}  # parameters in the order in which their gradients became ready
        self._compiled = False
        self._order: list[int] = []  # layers from input to output, set after the first step
        self._skipped: set[int] = set()
        self._previous: int | None = None  # the last layer started in this step
        self._moved = False

        self._homes: dict[int, list[str]] = {}  # parameter -> the modules that own it; several if tied
        self._below: dict[str, set[int]] = {}  # module -> the layers inside it
        for path, module in model.named_modules():
            below = {self._owner[id(p)] for p in module.parameters() if id(p) in self._owner}
            if below:
                self._below[path] = below
                for p in module.parameters(recurse=False):
                    self._homes.setdefault(id(p), []).append(path)
        self._starts = {
            path: StartHook(module, partial(self._start, path))
            for path, module in model.named_modules()
            if path in self._below and not isinstance(module, nn.ModuleList | nn.ModuleDict | torch.jit.ScriptModule)
        }
        self._grads = [
            p.register_post_accumulate_grad_hook(self._ready)
            for layer in layers
            for p in layer.parameters
            if p.requires_grad
        ]

    @property
    def ran(self) -> bool:
        return bool(self._started)

    def remove(self) -> None:
        for hook in (*self._starts.values(), *self._grads):
            hook.remove()
        self._starts, self._grads = {}, []

    def first_step(self) -> list[int]:
        """The depth of each layer, in the given order, after the first backward pass. Skipped layers come last until
        they run."""
        start = {i: self._start_of(layer) for i, layer in enumerate(self._layers)}
        raw = [i for i in start if self._is_raw(i)]
        never = len(self._started)
        at = {i: never if moment is None else moment for i, moment in start.items()}
        self._order = sorted((i for i in start if i not in raw), key=lambda i: (at[i], self._layers[i].depth))
        self._skipped = {i for i in self._order if start[i] is None and self._layers[i].trainable}
        for i in sorted(raw, key=self._reached):  # last used first: the others are inserted before it
            self._order.insert(self._place(i, set(raw)), i)
        self._watch_on(start)
        return self._depths()

    def changed(self) -> list[int] | None:
        """Call at the end of a later step: the new depths if a previously skipped layer has run, else None."""
        self._previous = None
        if not self._moved:
            return None
        self._moved = False
        if not self._skipped and not self._compiled:
            self.remove()
        return self._depths()

    def _start(self, path: str, compiled: bool) -> None:
        self._compiled |= compiled
        if not self._order:
            self._started.setdefault(path, len(self._started))
            return
        below = next(iter(self._below[path]))
        if len(self._below[path]) > 1 or below not in self._order:
            return
        if below in self._skipped:
            self._skipped.discard(below)
            self._order.remove(below)
            after = -1 if self._previous is None else self._order.index(self._previous)
            self._order.insert(after + 1, below)
            self._moved = True
        self._previous = below

    def _ready(self, parameter: Tensor) -> None:
        self._backward.setdefault(id(parameter), None)

    def _watch_on(self, start: dict[int, int | None]) -> None:
        """Keep one hook per layer as long as some layers are skipped. A compiled model keeps all its hooks."""
        for hook in self._grads:
            hook.remove()
        self._grads = []
        if self._compiled:
            return
        firsts = {moment for moment in start.values() if moment is not None}
        for path in list(self._starts):
            layers = self._below[path]
            needed = layers <= self._skipped if len(layers) == 1 else False
            if not self._skipped or not (needed or self._started.get(path) in firsts):
                self._starts.pop(path).remove()

    def _depths(self) -> list[int]:
        depths = [0] * len(self._order)
        for depth, i in enumerate(self._order):
            depths[i] = depth
        return depths

    def _start_of(self, layer: Layer) -> int | None:
        """When a layer first started, or None. A layer may get a gradient although its module is never called, as the
        output projection of nn.MultiheadAttention does: then it starts with the module around it."""
        starts = []
        for p in layer.parameters:
            homes = self._homes.get(id(p), [""])
            if p.grad is not None and not any(path in self._started for path in homes):
                homes = [self._started_around(homes[0])]
            starts += [self._started[path] for path in homes if path in self._started]
        return min(starts, default=None)

    def _started_around(self, path: str) -> str:
        """The innermost module around ``path`` that was started."""
        while path and path not in self._started:
            path = path.rpartition(".")[0]
        return path

    def _is_raw(self, i: int) -> bool:
        """Whether no module of a layer shows when it is used: its parameters are owned directly by modules that contain
        other layers, or are read without a call of their module (the queries of DETR)."""
        homes = [self._homes.get(id(p), [""]) for p in self._layers[i].parameters]
        if all(len(self._below.get(paths[0], ())) > 1 for paths in homes):
            return True
        called = any(path in self._started for paths in homes for path in paths)
        return self.ran and not called and not self._compiled and self._reached(i) >= 0

    def _reached(self, i: int) -> int:
        """When the backward pass finished a layer; -1 if it did not reach it."""
        return max((k for k, p in enumerate(self._backward) if self._owner.get(p) == i), default=-1)

    def _place(self, i: int, raw: set[int]) -> int:
        """The position of a raw layer in the order so far."""
        ready = list(self._backward)
        own = [k for k, p in enumerate(ready) if self._owner.get(p) == i]
        if own and not self._compiled:
            before = next((o for p in ready[max(own) + 1 :] if (o := self._owner[p]) not in raw), None)
            return 0 if before is None else self._order.index(before) + 1
        holder = self._below.get(self._homes.get(id(self._layers[i].parameters[0]), [""])[0], set())
        inside = [place for place, other in enumerate(self._order) if other in holder and other not in raw]
        if not inside:
            return len(self._order)
        return (inside[0] if is_tokens(self._layers[i].name) else inside[-1]) + 1
