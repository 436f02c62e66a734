"""What is measured per layer. A handful of fused kernels for all parameters; nothing leaves the device.

Each signal is a function of a `Step` and gives one number a layer, never negative, so that -1 can stand for
"not measured".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer


class LayerIndex:
    """Which layer each parameter belongs to, for summing per-parameter values into per-layer ones."""

    def __init__(self, layers: Sequence[Sequence[nn.Parameter]]) -> None:
        self.parameters = [p for layer in layers for p in layer]
        self.num_layers = len(layers)
        self._owner = [i for i, layer in enumerate(layers) for _ in layer]
        self._cache: dict[tuple[int, ...], Tensor] = {}

    def owner(self, which: Sequence[int], device: torch.device) -> Tensor:
        """Layer index of each parameter in ``which``."""
        key = tuple(which)
        if key not in self._cache:
            self._cache[key] = torch.tensor([self._owner[i] for i in which], device=device)
        return self._cache[key]


@dataclass
class Step:
    """What the signals of one iteration read. ``which``: the parameters that got a gradient."""

    index: LayerIndex
    which: list[int]
    optimizer: Optimizer | None = None
    before: list[Tensor] | None = None  # the parameters before the last update, for update_ratio

    @cached_property
    def grads(self) -> list[Tensor]:
        return [local(self.index.parameters[i].grad) for i in self.which]  # type: ignore[arg-type]

    @cached_property
    def grad_norms(self) -> tuple[Tensor, Tensor]:
        """L2 norm and largest absolute entry of each gradient."""
        return l2_and_largest(self.grads)

    @cached_property
    def weights(self) -> list[Tensor]:
        return [local(p) for p in self.index.parameters]

    @cached_property
    def owner(self) -> Tensor:
        return self.index.owner(self.which, self.grads[0].device)

    @cached_property
    def all_owner(self) -> Tensor:
        return self.index.owner(range(len(self.index.parameters)), self.weights[0].device)

    def l2(self, per_parameter: Tensor, *, weights: bool = False) -> Tensor:
        """L2 norm per layer (L,) from those of its parameters; over all shards where they are sharded."""
        owner = self.all_owner if weights else self.owner
        names = range(len(self.index.parameters)) if weights else self.which
        return across_shards(
            lambda values, owners: l2(values, owners, self.index.num_layers),
            per_parameter,
            owner,
            [self.index.parameters[i] for i in names],
            square=True,
        )

    def largest(self, per_parameter: Tensor) -> Tensor:
        """The largest value per layer (L,)."""
        return across_shards(
            lambda values, owners: largest(values, owners, self.index.num_layers),
            per_parameter,
            self.owner,
            [self.index.parameters[i] for i in self.which],
            square=False,
        )

    def mean(self, per_parameter_sum: Tensor) -> Tensor:
        """Sums over a parameter's entries -> the mean over its layer's."""
        count = self.index.num_layers
        sizes = torch.tensor([g.numel() for g in self.grads], device=self.owner.device, dtype=torch.float32)
        total = per_parameter_sum.new_zeros(count).index_add_(0, self.owner, per_parameter_sum)
        return total / sizes.new_zeros(count).index_add_(0, self.owner, sizes).clamp(min=1)


def grad_norm(step: Step) -> Tensor:
    return step.l2(step.grad_norms[0])


def grad_max(step: Step) -> Tensor:
    return step.largest(step.grad_norms[1])


def weight_norm(step: Step) -> Tensor:
    return step.l2(norms(step.weights, 2), weights=True)


def nonfinite(step: Step) -> Tensor:
    """Share of a layer's gradient entries that are NaN or infinite."""
    return step.mean(torch.stack([(~g.isfinite()).sum() for g in step.grads]).float())


def adam_rms(step: Step) -> Tensor:
    """RMS_t = sqrt(mean(g^2 / max(v_t, eps^2))), v_t with this gradient already in it (arXiv 2304.13013)."""
    assert step.optimizer is not None
    groups = {id(p): group for group in step.optimizer.param_groups for p in group["params"]}
    sums = []
    for i, g in zip(step.which, step.grads, strict=True):
        parameter = step.index.parameters[i]
        group = groups.get(id(parameter), {})
        beta2, eps = group.get("betas", (0.9, 0.999))[1], group.get("eps", 1e-8)
        state = step.optimizer.state.get(parameter, {})
        t = float(state.get("step", 0)) + 1
        old = local(state["exp_avg_sq"]) if "exp_avg_sq" in state else torch.zeros_like(g)
        square = g.float() ** 2
        v = (beta2 * old + (1 - beta2) * square) / (1 - beta2**t)
        sums.append((square / v.clamp(min=eps**2)).sum())
    return step.mean(torch.stack(sums)).sqrt()


def update_ratio(step: Step) -> Tensor:
    """L2 size of the last update over that of the weights before it."""
    assert step.before is not None
    changes = torch._foreach_sub(step.weights, step.before)
    size = step.l2(norms(changes, 2), weights=True)
    return size / step.l2(norms(step.before, 2), weights=True).clamp(min=1e-30)


SIGNALS: dict[str, Callable[[Step], Tensor]] = {
    "grad_norm": grad_norm,
    "grad_max": grad_max,
    "weight_norm": weight_norm,
    "nonfinite": nonfinite,
    "adam_rms": adam_rms,
    "update_ratio": update_ratio,
}
OF_FORWARD = ("activation_max", "attention_max")  # measured by hooks: see activations.py
DEFAULT = ("grad_norm", "grad_max")


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a sharded tensor (FSDP2); any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor.detach()


def across_shards(
    reduce: Callable[[Tensor, Tensor], Tensor],
    values: Tensor,
    owner: Tensor,
    parameters: Sequence[nn.Parameter],
    *,
    square: bool,
) -> Tensor:
    """Reduce values per parameter to values per layer; those of sharded parameters over all their shards, with
    one collective."""
    sharded = [hasattr(p, "to_local") for p in parameters]
    if not any(sharded):
        return reduce(values, owner)
    mask = torch.tensor(sharded, device=values.device)
    mine = reduce(torch.where(mask, values, 0.0), owner)
    mine = mine.double() ** 2 if square else mine
    group = _shard_group(next(p for p in parameters if hasattr(p, "to_local")))
    dist.all_reduce(mine, dist.ReduceOp.SUM if square else dist.ReduceOp.MAX, group=group)
    whole = reduce(torch.where(mask, 0.0, values), owner)
    if square:
        return (mine + whole.double() ** 2).sqrt().float()
    return torch.maximum(mine, whole)


def _shard_group(parameter: nn.Parameter) -> dist.ProcessGroup:
    """The processes that hold one copy's shards: the mesh dimension that is sharded, not the replicated one."""
    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    dims = [d for d, placement in enumerate(placements) if placement.is_shard()]
    return mesh.get_group(dims[0] if dims else 0)


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
def l2_and_largest(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """L2 norm and largest absolute entry of each tensor, (len(tensors),) float32; NaN where there is one."""
    if tensors[0].is_cuda and all(t.numel() for t in tensors):
        return norms(tensors, 2), norms(tensors, float("inf"))
    # On the CPU torch's infinity norm is five times slower than a minimum and a maximum, and memory is what a norm
    # costs: both while the tensor is in the cache. An empty shard has neither.
    l2s, lows, highs = [], [], []
    for t in tensors:
        low, high = torch.aminmax(t if t.numel() else t.new_zeros(1))
        l2s.append(torch.linalg.vector_norm(t))
        lows.append(low)
        highs.append(high)
    return torch.stack(l2s).float(), torch.stack([torch.stack(lows), torch.stack(highs)]).abs().amax(0).float()


@torch.no_grad()
def norms(tensors: Sequence[Tensor], order: float) -> Tensor:
    """The norm of each tensor, (len(tensors),) float32."""
    return torch.stack([n.float() for n in torch._foreach_norm(list(tensors), order)])
