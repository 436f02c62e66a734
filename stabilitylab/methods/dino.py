"""DINO (arXiv 2104.14294): a student predicts its momentum teacher's centred, sharpened output on another view."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabilitylab.config import MethodConfig
from stabilitylab.methods.base import Method
from stabilitylab.models.collectives import mean_over_processes
from stabilitylab.models.heads import mlp_head


class DINO(Method):
    uses_momentum_encoder = True
    takes_local_crops = True
    center: Tensor

    def __init__(self, base_encoder: nn.Module, config: MethodConfig, *, vit: bool = True) -> None:
        super().__init__(base_encoder, config)
        self.projector = mlp_head(
            3, self.features, config.hidden_dim, config.out_dim, bn=config.head_bn, last_bn=False, activation=nn.GELU
        )
        for layer in self.projector.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.prototypes = nn.Linear(config.out_dim, config.num_prototypes, bias=False)
        self.add_momentum_copies("base_encoder", "projector", "prototypes")
        self.register_buffer("center", torch.zeros(config.num_prototypes))

    def encode_momentum(self, views: list[Tensor]) -> list[Tensor]:
        return super().encode_momentum(views[:2])  # the teacher sees only the global views

    def loss(self, features: list[Tensor], momentum_features: list[Tensor] | None, iteration: int = 0) -> Tensor:
        assert momentum_features is not None
        config = self.config
        log_p = [
            F.log_softmax(scores(h, self.projector, self.prototypes) / config.temperature, dim=1) for h in features
        ]
        with torch.no_grad():
            teacher = [
                scores(h, self.get_submodule("momentum_projector"), self.get_submodule("momentum_prototypes"))
                for h in momentum_features
            ]
            sharpness = self.teacher_temperature(iteration)
            targets = [F.softmax((t - self.center) / sharpness, dim=1) for t in teacher]
        pairs = [(q, p) for i, q in enumerate(targets) for j, p in enumerate(log_p) if i != j]
        total = torch.stack([-(q * p).sum(1).mean() for q, p in pairs]).mean()
        self.update_center(torch.cat(teacher))
        return total

    def teacher_temperature(self, iteration: int) -> float:
        """The teacher's temperature: a linear ramp during warmup, then constant."""
        config = self.config
        done = min(1.0, iteration / config.teacher_warmup_iterations) if config.teacher_warmup_iterations else 1.0
        start = config.teacher_temperature_start
        return start + done * (config.teacher_temperature - start)

    @torch.no_grad()
    def update_center(self, scores: Tensor) -> None:
        """Update the running mean of the teacher's scores (N, K) over all processes."""
        mean = mean_over_processes(scores.to(self.center.dtype).mean(0))
        # Skip a non-finite batch: it would make every later target non-finite.
        self.center.copy_(
            torch.where(mean.isfinite(), self.center.lerp(mean, 1 - self.config.center_momentum), self.center)
        )

    def before_update(self, iteration: int) -> None:
        """Freeze the last layer during the first iterations (the paper uses one epoch)."""
        if iteration < self.config.freeze_prototypes_iterations:
            self.prototypes.weight.grad = None


def scores(features: Tensor, projector: nn.Module, prototypes: nn.Module) -> Tensor:
    """Cosine similarities (N, K) of projected features and prototypes: the last layer's weight norm is fixed at 1."""
    z = F.normalize(projector(features), dim=1)
    return F.linear(z, F.normalize(prototypes.weight, dim=1))  # type: ignore[arg-type]
