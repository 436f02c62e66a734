"""BatchNorm synchronised over all processes, on any backend. torch's SyncBatchNorm requires CUDA."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stabilitylab.models.collectives import num_processes, sum_over_processes

M = TypeVar("M", bound=nn.Module)


class SharedBatchNorm(_BatchNorm):
    """Normalises (N, C, ...) with mean and variance over the rows of all processes. Gradients flow through both."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or num_processes() == 1:
            return super().forward(x)
        axes = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.numel() // x.shape[1] * num_processes()
        mean = sum_over_processes(x.sum(axes)) / count
        centred = x - mean.view(shape)
        # Two passes: E[x^2] - E[x]^2 would cancel in a channel whose variance is small relative to its mean.
        variance = sum_over_processes(centred.square().sum(axes)) / count
        self._note(mean.detach(), variance.detach(), count)
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)  # type: ignore[arg-type]
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)  # type: ignore[union-attr]
        unbiased = variance * (count / max(count - 1, 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)  # type: ignore[union-attr]


def share_batch_norms(module: M) -> M:
    """Replace every BatchNorm with a synchronised one; parameters, buffers and their names stay the same. On CUDA this
    is torch's SyncBatchNorm. Returns the module, or its replacement if ``module`` is itself a BatchNorm."""
    tensor = next((p for p in [*module.parameters(), *module.buffers()]), None)
    if tensor is not None and tensor.is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    if isinstance(module, _BatchNorm) and not isinstance(module, SharedBatchNorm):
        shared = SharedBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        shared.train(module.training)
        for name, parameter in module.named_parameters(recurse=False):
            setattr(shared, name, parameter)  # the same object: optimizer and recorder refer to it
        for name, buffer in module.named_buffers(recurse=False):
            setattr(shared, name, buffer)
        return shared  # type: ignore[return-value]
    for name, child in module.named_children():
        setattr(module, name, share_batch_norms(child))
    return module
