"""SimCLR (arXiv 2002.05709), with the heads used for it in the MoCo v3 paper (arXiv 2104.02057, section 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabilitylab.config import MethodConfig
from stabilitylab.methods.base import Method
from stabilitylab.models.collectives import first_row, gather_with_gradient
from stabilitylab.models.heads import mlp_head


class SimCLR(Method):
    def __init__(self, base_encoder: nn.Module, config: MethodConfig, *, vit: bool = True) -> None:
        super().__init__(base_encoder, config)
        layers = 3 if vit else 2
        self.projector = mlp_head(layers, self.features, config.hidden_dim, config.out_dim, bn=config.head_bn)

    def loss(self, features: list[Tensor], momentum_features: list[Tensor] | None, iteration: int = 0) -> Tensor:
        z1, z2 = (self.projector(h) for h in features)
        return nt_xent(z1, z2, self.config.temperature)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """NT-Xent loss: cross-entropy of this process's 2n views, each against the other 2N - 1 views of all processes.
    ``z1`` and ``z2`` are (n, D); row i of one is the positive of row i of the other."""
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    everyone = torch.cat([gather_with_gradient(z1), gather_with_gradient(z2)])  # (2N, D)
    n, total = len(z1), len(everyone) // 2
    own = torch.arange(n, device=z1.device) + first_row(n)
    own, positives = torch.cat([own, own + total]), torch.cat([own + total, own])
    logits = torch.cat([z1, z2]) @ everyone.T / temperature  # (2n, 2N)
    logits = logits.scatter(1, own[:, None], -torch.inf)
    return F.cross_entropy(logits, positives)
