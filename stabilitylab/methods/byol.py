"""BYOL (arXiv 2006.07733): predict the momentum encoder's output for the other view. No negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabilitylab.config import MethodConfig
from stabilitylab.methods.base import Method
from stabilitylab.models.heads import mlp_head


class BYOL(Method):
    uses_momentum_encoder = True

    def __init__(self, base_encoder: nn.Module, config: MethodConfig, *, vit: bool = True) -> None:
        super().__init__(base_encoder, config)
        hidden, out, bn = config.hidden_dim, config.out_dim, config.head_bn
        # BN in hidden layers only (arXiv 2104.02057, section 5).
        self.projector = mlp_head(3 if vit else 2, self.features, hidden, out, bn=bn, last_bn=False)
        self.predictor = mlp_head(2, out, hidden, out, bn=bn, last_bn=False) if config.predictor else nn.Identity()
        self.add_momentum_copies("base_encoder", "projector")

    def loss(self, features: list[Tensor], momentum_features: list[Tensor] | None, iteration: int = 0) -> Tensor:
        assert momentum_features is not None
        p1, p2 = (self.predictor(self.projector(h)) for h in features)
        with torch.no_grad():
            z1, z2 = (self.momentum_projector(h) for h in momentum_features)  # type: ignore[operator]
        return squared_distance(p1, z2) + squared_distance(p2, z1)


def squared_distance(p: Tensor, z: Tensor) -> Tensor:
    """Mean squared distance of L2-normalised rows (N, D): 2 - 2 cos."""
    return (2 - 2 * F.cosine_similarity(p, z, dim=1)).mean()
