"""MoCo v2 (arXiv 2003.04297): asymmetric loss, negatives from a queue. MoCo v3 removed the queue, which lets small
batches work.

Keys are not shuffled across devices, because BatchNorm is synchronised (SyncBN) and sees the whole batch everywhere.
The paper uses a constant EMA momentum of 0.999 for 200 epochs of ImageNet: ``--set method.ema_momentum=0.999 --set
method.ema_schedule=constant``. The default here is that of the other methods.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabilitylab.config import MethodConfig
from stabilitylab.methods.base import Method
from stabilitylab.models.collectives import gather
from stabilitylab.models.heads import mlp_head


class MoCoV2(Method):
    uses_momentum_encoder = True
    queue: Tensor
    queue_position: Tensor

    def __init__(self, base_encoder: nn.Module, config: MethodConfig, *, vit: bool = True) -> None:
        super().__init__(base_encoder, config)
        self.projector = mlp_head(2, self.features, config.hidden_dim, config.out_dim, bn=config.head_bn)
        self.add_momentum_copies("base_encoder", "projector")
        self.register_buffer("queue", F.normalize(torch.randn(config.queue_size, config.out_dim), dim=1))
        self.register_buffer("queue_position", torch.zeros((), dtype=torch.long))

    def encode(self, views: list[Tensor]) -> list[Tensor]:
        return super().encode(views[:1])  # view of the query

    def encode_momentum(self, views: list[Tensor]) -> list[Tensor]:
        return super().encode_momentum(views[1:2])  # view of the key

    def loss(self, features: list[Tensor], momentum_features: list[Tensor] | None, iteration: int = 0) -> Tensor:
        assert momentum_features is not None
        q = F.normalize(self.projector(features[0]), dim=1)  # (N, D)
        with torch.no_grad():
            k = F.normalize(self.momentum_projector(momentum_features[0]), dim=1)  # type: ignore[operator]
        positive = (q * k).sum(1, keepdim=True)  # (N, 1)
        negative = q @ self.queue.clone().T.to(q.dtype)  # (N, K); a copy, since the queue changes before backward
        logits = torch.cat([positive, negative], 1) / self.config.temperature
        self.enqueue(gather(k))
        return F.cross_entropy(logits, logits.new_zeros(len(q), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, k: Tensor) -> None:
        """Replace the oldest keys in the queue with the new keys (N, D)."""
        k = k[-len(self.queue) :].to(self.queue.dtype)
        places = (self.queue_position + torch.arange(len(k), device=k.device)) % len(self.queue)
        # Skip non-finite keys: each would make the loss non-finite until it left the queue.
        self.queue[places] = torch.where(k.isfinite().all(1, keepdim=True), k, self.queue[places])
        self.queue_position.add_(len(k)).remainder_(len(self.queue))
