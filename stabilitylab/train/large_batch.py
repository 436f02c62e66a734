"""Forward and backward pass of one step, exact for the whole batch even if a device can hold only a part of it.

The method is cut at the output of the backbone. Above the cut, the loss uses the features of all images of the process
and, through collectives, those of other processes. Below the cut, images are independent, so the backbone can run in
chunks and recompute each chunk for its backward pass (gradient caching, arXiv 2101.06983).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stabilitylab.errors import ConfigError
from stabilitylab.methods.base import Method, mixes_images
from stabilitylab.models.batchnorm import share_batch_norms
from stabilitylab.models.collectives import mean_over_processes
from stabilitylab.train.distributed import World

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


class _Encode(nn.Module):
    """``Method.encode`` as a module, for DistributedDataParallel."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.base_encoder = method.base_encoder
        object.__setattr__(self, "method", method)  # not a submodule, so that DDP ignores the heads

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        return self.method.encode(views)  # type: ignore[union-attr, operator]


class CutStep:
    """Features, loss and backward pass of one batch. ``views`` are those of this process; the loss is that of the whole
    batch. Raises ConfigError if ``micro_batch`` is set and the backbone has BatchNorm."""

    def __init__(self, method: Method, world: World, micro_batch: int | None, autocast: Autocast) -> None:
        encoder = method.base_encoder
        if mixes_images(encoder) and micro_batch is not None:
            raise ConfigError(
                f"train.micro_batch: {type(encoder).__name__} has BatchNorm, whose statistics need the whole batch; "
                "use a backbone without BatchNorm, or remove micro_batch"
            )
        if world.size > 1:
            share_batch_norms(method)
        self.method, self.world, self.micro_batch, self.autocast = method, world, micro_batch, autocast
        self._encode: nn.Module = _Encode(method)
        if world.size > 1 and any(p.requires_grad for p in encoder.parameters()):
            self._encode = DistributedDataParallel(self._encode)

    def __call__(
        self, views: list[Tensor], scale: Callable[[Tensor], Tensor] = lambda loss: loss, iteration: int = 0
    ) -> Tensor:
        """Accumulate gradients of ``scale(loss)`` at ``iteration``. Returns the unscaled loss, detached.

        Each process computes the loss of its own rows with its heads, whose BatchNorms are synchronised. Losses and
        gradients are averaged over processes, which gives those of the whole batch."""
        chunks = self._chunks(views)
        with self.autocast():
            momentum = None
            if self.method.uses_momentum_encoder:
                momentum = _joined([self.method.encode_momentum(chunk) for chunk in chunks])
            held = self._encode(views) if len(chunks) == 1 else None
            if held is None:
                with torch.no_grad():
                    features = _joined([self.method.encode(chunk) for chunk in chunks])
            else:
                features = held
            leaves = [f.detach().requires_grad_() for f in features]
            loss = self.method.loss(leaves, momentum, iteration)
        scale(loss).backward()
        grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
        if held is not None:
            torch.autograd.backward(held, grads)
        else:
            self._backward_in_chunks(chunks, grads)
        if self.world.size > 1:
            inside = {id(p) for p in self.method.base_encoder.parameters()}
            self.world.average_gradients(p for p in self.method.parameters() if id(p) not in inside)
        with torch.no_grad():
            return mean_over_processes(loss.detach())

    def _chunks(self, views: list[Tensor]) -> list[list[Tensor]]:
        size = self.micro_batch or len(views[0])
        return [list(chunk) for chunk in zip(*(view.split(size) for view in views), strict=True)]

    def _backward_in_chunks(self, chunks: list[list[Tensor]], grads: list[Tensor]) -> None:
        rows = [len(chunk[0]) for chunk in chunks]
        for i, (chunk, parts) in enumerate(zip(chunks, zip(*(g.split(rows) for g in grads), strict=True), strict=True)):
            waits = i < len(chunks) - 1 and isinstance(self._encode, DistributedDataParallel)
            with self._encode.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                with self.autocast():
                    features = self._encode(chunk)
                torch.autograd.backward(features, list(parts))


def _joined(chunks: list[list[Tensor]]) -> list[Tensor]:
    """Concatenate chunks of features: one tensor per view with this process's rows."""
    return [torch.cat(parts) for parts in zip(*chunks, strict=True)]
