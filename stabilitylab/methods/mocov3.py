"""MoCo v3, Algorithm 1 (arXiv 2104.02057)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabilitylab.config import MethodConfig
from stabilitylab.methods.base import Method
from stabilitylab.models.collectives import first_row, gather
from stabilitylab.models.heads import mlp_head


class MoCoV3(Method):
    uses_momentum_encoder = True

    def __init__(self, base_encoder: nn.Module, config: MethodConfig, *, vit: bool = True) -> None:
        super().__init__(base_encoder, config)
        hidden, out, bn = config.hidden_dim, config.out_dim, config.head_bn
        # ResNets use a two-layer projector and no BN at the end of the predictor (PAPER, Implementation).
        self.projector = mlp_head(3 if vit else 2, self.features, hidden, out, bn=bn)
        self.predictor = mlp_head(2, out, hidden, out, bn=bn, last_bn=vit) if config.predictor else nn.Identity()
        self.add_momentum_copies("base_encoder", "projector")

    def loss(self, features: list[Tensor], momentum_features: list[Tensor] | None, iteration: int = 0) -> Tensor:
        assert momentum_features is not None
        q1, q2 = (self.predictor(self.projector(h)) for h in features)
        with torch.no_grad():
            k1, k2 = (self.momentum_projector(h) for h in momentum_features)  # type: ignore[operator]
        return contrastive(q1, k2, self.config.temperature) + contrastive(q2, k1, self.config.temperature)


def contrastive(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Contrastive loss 2 tau CE(q k^T / tau) over L2-normalised rows (n, D); the positive of row i is key i. Keys are
    gathered from all processes, without gradient."""
    keys = gather(F.normalize(k, dim=1))  # (N, D)
    logits = F.normalize(q, dim=1) @ keys.T / temperature  # (n, N)
    labels = torch.arange(len(q), device=q.device) + first_row(len(q))
    return 2 * temperature * F.cross_entropy(logits, labels)
