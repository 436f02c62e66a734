"""Collective operations within a training step. With one process each of them is the identity.

All processes have the same number of rows, and each computes the loss of its own rows. The mean over processes is the
loss of the whole batch, and the mean of the gradients is its gradient, because these operations are differentiable.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def first_row(rows: int) -> int:
    """Index of this process's first row in the whole batch, if each process has ``rows`` rows."""
    return dist.get_rank() * rows if num_processes() > 1 else 0


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """Gather the rows of all processes, (n, ...) -> (processes * n, ...), in order of rank, without gradient."""
    return _gathered(x.detach())


def gather_with_gradient(x: Tensor) -> Tensor:
    """Like `gather`, but differentiable: a row receives the sum of its gradients over all processes."""
    return _Gather.apply(x) if num_processes() > 1 else x


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of ``x`` over processes, differentiable."""
    return _Sum.apply(x) if num_processes() > 1 else x


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of ``x`` over processes, differentiable."""
    size = num_processes()
    return sum_over_processes(x) / size if size > 1 else x


def _gathered(x: Tensor) -> Tensor:
    size = num_processes()
    if size == 1:
        return x
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(size)]
    dist.all_gather(parts, x)
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return _gathered(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        start = first_row(ctx.rows)
        return grad[start : start + ctx.rows]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad
