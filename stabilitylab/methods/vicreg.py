"""VICReg (arXiv 2105.04906): invariance between two views, variance of every dimension, zero covariance between
dimensions. No negatives, no momentum encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabilitylab.config import MethodConfig
from stabilitylab.methods.base import Method
from stabilitylab.models.collectives import gather_with_gradient
from stabilitylab.models.heads import mlp_head


class VICReg(Method):
    def __init__(self, base_encoder: nn.Module, config: MethodConfig, *, vit: bool = True) -> None:
        super().__init__(base_encoder, config)
        hidden, out, bn = config.hidden_dim, config.out_dim, config.head_bn
        self.projector = mlp_head(3, self.features, hidden, out, bn=bn, last_bn=False)

    def loss(self, features: list[Tensor], momentum_features: list[Tensor] | None, iteration: int = 0) -> Tensor:
        z1, z2 = (self.projector(h) for h in features)
        config = self.config
        invariance = F.mse_loss(z1, z2)
        everyone = [gather_with_gradient(z.float() if z.dtype.itemsize < 4 else z) for z in (z1, z2)]
        spread = sum(variance(z) for z in everyone) / 2
        redundancy = sum(covariance(z) for z in everyone)
        return (
            config.invariance_weight * invariance
            + config.variance_weight * spread
            + config.covariance_weight * redundancy
        )


def variance(z: Tensor) -> Tensor:
    """Hinge loss on the standard deviation of (N, D): mean over dimensions of max(0, 1 - std)."""
    return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """Sum of the squared off-diagonal covariances of (N, D), over D."""
    n, d = z.shape
    centred = z - z.mean(0)
    matrix = centred.T @ centred / (n - 1)
    return (matrix.square().sum() - torch.diagonal(matrix).square().sum()) / d
