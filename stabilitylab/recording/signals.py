"""What is measured per layer. A handful of fused kernels for all parameters; nothing leaves the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LayerIndex:
    """Which layer each parameter belongs to, for summing per-parameter values into per-layer ones."""

    def __init__(self, layers: Sequence[Sequence[nn.Parameter]]) -> None:
        self.parameters = [p for layer in layers for p in layer]
        self.num_layers = len(layers)
        self._owner = [i for i, layer in enumerate(layers) for _ in layer]

    def owner(self, which: Sequence[int], device: torch.device) -> Tensor:
        """Layer index of each parameter in ``which``."""
        return torch.tensor([self._owner[i] for i in which], device=device)


def l2(per_parameter: Tensor, owner: Tensor, num_layers: int) -> Tensor:
    """L2 norm per layer from L2 norms per parameter; NaN where a layer has none.

    Norms are scaled by their largest before squaring, so that float32 neither overflows nor underflows.
    """
    top = largest(per_parameter, owner, num_layers)
    scale = torch.where((top > 0) & top.isfinite(), top, 1.0)
    ratio = per_parameter / scale[owner]
    total = per_parameter.new_zeros(num_layers).index_add_(0, owner, ratio * ratio)
    return torch.where(top.isfinite(), total.sqrt() * scale, top)


def largest(per_parameter: Tensor, owner: Tensor, num_layers: int) -> Tensor:
    """Largest value per layer; NaN wins over all."""
    empty = per_parameter.new_zeros(num_layers)
    return empty.scatter_reduce(0, owner, per_parameter, "amax", include_self=True)


@torch.no_grad()
def norms(tensors: Sequence[Tensor], order: float) -> Tensor:
    """The norm of each tensor, (len(tensors),) float32."""
    return torch.stack([n.float() for n in torch._foreach_norm(list(tensors), order)])
