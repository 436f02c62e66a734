"""SwAV (arXiv 2006.09882): predict one view's cluster assignment from another's. Multi-crop where the data gives it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabilitylab.config import MethodConfig
from stabilitylab.methods.base import Method
from stabilitylab.models.heads import mlp_head


class SwAV(Method):
    takes_local_crops = True

    def __init__(self, base_encoder: nn.Module, config: MethodConfig, *, vit: bool = True) -> None:
        super().__init__(base_encoder, config)
        layers = 3 if vit else 2
        self.projector = mlp_head(layers, self.features, config.hidden_dim, config.out_dim, bn=config.head_bn)
        self.prototypes = nn.Linear(config.out_dim, config.num_prototypes, bias=False)

    def loss(self, features: list[Tensor], momentum_features: list[Tensor] | None) -> Tensor:
        """The first two views are global: they alone give codes. Every view predicts the codes of the others."""
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        scores = [self.prototypes(F.normalize(self.projector(h), dim=1)) for h in features]  # each (N, K)
        config = self.config
        log_p = [F.log_softmax(s / config.temperature, dim=1) for s in scores]
        total = scores[0].new_zeros(())
        for code in range(2):
            q = sinkhorn(scores[code].detach(), config.sinkhorn_epsilon, config.sinkhorn_iterations)
            others = [view for view in range(len(features)) if view != code]
            total = total - sum((q * log_p[view]).sum(1).mean() for view in others) / len(others)
        return total / 2

    def before_update(self, iteration: int) -> None:
        """Prototypes stand still at first (the authors: 313 iterations)."""
        if iteration < self.config.freeze_prototypes_iterations:
            self.prototypes.weight.grad = None


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Codes (N, K) from scores (N, K): rows sum to 1, columns nearly to N / K (appendix A)."""
    q = ((scores.float() - scores.float().max()) / epsilon).exp()
    n, k = q.shape
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True).clamp(min=1e-30) / k  # each prototype gets an equal share
        q = q / q.sum(1, keepdim=True).clamp(min=1e-30) / n  # each image an equal one
    return q * n
