"""SwAV (arXiv 2006.09882): predict the cluster assignment of one view from another. Supports multi-crop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabilitylab.config import MethodConfig
from stabilitylab.methods.base import Method
from stabilitylab.models.collectives import first_row, gather
from stabilitylab.models.heads import mlp_head


class SwAV(Method):
    takes_local_crops = True
    queue: Tensor
    queue_filled: Tensor

    def __init__(self, base_encoder: nn.Module, config: MethodConfig, *, vit: bool = True) -> None:
        super().__init__(base_encoder, config)
        layers = 3 if vit else 2
        self.projector = mlp_head(layers, self.features, config.hidden_dim, config.out_dim, bn=config.head_bn)
        self.prototypes = nn.Linear(config.out_dim, config.num_prototypes, bias=False)
        if config.code_queue:  # a queue of earlier embeddings for each global view, newest first
            self.register_buffer("queue", torch.zeros(2, config.code_queue, config.out_dim))
            self.register_buffer("queue_filled", torch.zeros((), dtype=torch.long))

    def loss(self, features: list[Tensor], momentum_features: list[Tensor] | None, iteration: int = 0) -> Tensor:
        """The first two views are global and only they have codes. Every view predicts the codes of the others."""
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        z = [F.normalize(self.projector(h), dim=1) for h in features]
        scores = [self.prototypes(x) for x in z]  # each (n, K)
        log_p = [F.log_softmax(s / self.config.temperature, dim=1) for s in scores]
        codes = self.codes(z[:2], iteration)
        total = scores[0].new_zeros(())
        for code, q in enumerate(codes):
            others = [view for view in range(len(features)) if view != code]
            total = total - sum((q * log_p[view]).sum(1).mean() for view in others) / len(others)
        return total / 2

    @torch.no_grad()
    def codes(self, z: list[Tensor], iteration: int) -> list[Tensor]:
        """Codes (n, K) of this process's embeddings. They are balanced over the embeddings of all processes and, once
        the queue is full, those in the queue."""
        config = self.config
        everyone = [gather(x) for x in z]
        queued = config.code_queue > 0 and iteration >= config.code_queue_start
        full = queued and int(self.queue_filled) >= config.code_queue
        codes = []
        for view, x in enumerate(everyone):
            rows = torch.cat([x, self.queue[view].to(x.dtype)]) if full else x
            q = sinkhorn(self.prototypes(rows), config.sinkhorn_epsilon, config.sinkhorn_iterations)
            start = first_row(len(z[view]))
            codes.append(q[start : start + len(z[view])])
        if queued:
            self.enqueue(everyone)
        return codes

    def enqueue(self, z: list[Tensor]) -> None:
        """Replace the oldest embeddings in the queues with the new ones, (N, D) for each global view."""
        for queue, x in zip(self.queue, z, strict=True):
            x = torch.where(x.isfinite().all(1, keepdim=True), x, 0.0).to(queue.dtype)
            queue.copy_(torch.cat([x, queue])[: len(queue)])
        self.queue_filled.add_(len(z[0]))

    def before_update(self, iteration: int) -> None:
        """Freeze the prototypes during the first iterations (the paper uses 313)."""
        if iteration < self.config.freeze_prototypes_iterations:
            self.prototypes.weight.grad = None


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes (N, K) from scores (N, K): rows sum to 1, columns approximately to N / K (appendix A)."""
    q = ((scores.float() - scores.float().max()) / epsilon).exp()
    n, k = q.shape
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True).clamp(min=1e-30) / k  # each prototype gets an equal share
        q = q / q.sum(1, keepdim=True).clamp(min=1e-30) / n  # each image too
    return q * n
