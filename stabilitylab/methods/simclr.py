"""SimCLR (arXiv 2002.05709), with the heads that the MoCo v3 study gives it (arXiv 2104.02057, section 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabilitylab.config import MethodConfig
from stabilitylab.methods.base import Method
from stabilitylab.models.heads import mlp_head


class SimCLR(Method):
    def __init__(self, base_encoder: nn.Module, config: MethodConfig, *, vit: bool = True) -> None:
        super().__init__(base_encoder, config)
        layers = 3 if vit else 2
        self.projector = mlp_head(layers, self.features, config.hidden_dim, config.out_dim, bn=config.head_bn)

    def loss(self, features: list[Tensor], momentum_features: list[Tensor] | None) -> Tensor:
        z1, z2 = (self.projector(h) for h in features)
        return nt_xent(z1, z2, self.config.temperature)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each of the 2N views (N, D) against the other 2N - 1; the positive is its other view."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)  # (2N, D)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    n = len(z1)
    positives = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(logits, positives)
