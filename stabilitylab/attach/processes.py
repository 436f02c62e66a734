"""Distributed training: which wrappers can be recorded, and the mean of the loss over processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stabilitylab.errors import RecordError


def refuse_fsdp1(model: nn.Module) -> None:
    """Raise RecordError for FullyShardedDataParallel, where a process holds flat shards that span layers."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise RecordError(
            "this model is wrapped in FSDP1 (FullyShardedDataParallel), whose flat shards span layers. Use FSDP2 "
            "instead (torch.distributed.fsdp.fully_shard; fsdp_version: 2 in accelerate), or call record() on the "
            "model before wrapping it and pass your own norms: rec.step(norms={...})"
        )


class LossMean:
    """The mean of a loss over all processes. If any process does not record, each uses its own loss without waiting."""

    _made = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._together: bool | None = None
        self._world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if self._world > 1:
            LossMean._made += 1
            self._name = f"stabilitylab/loss/{LossMean._made}"
            self._store = dist.distributed_c10d._get_default_store()
            self._store.set(f"{self._name}/{dist.get_rank()}", "1")

    def __call__(self, loss: float | Tensor) -> float | Tensor:
        if self._world == 1:
            return loss
        if self._together is None:  # the backward pass has synchronised, so all recorders are open by now
            self._together = self._store.check([f"{self._name}/{rank}" for rank in range(self._world)])
        if not self._together:
            return loss
        mean = torch.as_tensor(loss, dtype=torch.float32, device=self._device).reshape(()).clone()
        dist.all_reduce(mean)
        mean /= self._world
        return float(mean) if mean.device.type == "cpu" else mean
