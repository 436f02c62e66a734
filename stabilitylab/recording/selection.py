"""A selection of parameters and its reductions per layer, for any device and any sharding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stabilitylab.recording.norms import Kinds

_KEPT = 16
"""Maximum number of cached selections. Most runs use one or two."""


class Selection:
    """A subset of the parameters with its constants, which are copied to the device only once."""

    def __init__(self, parameters: Sequence[nn.Parameter], owners: Sequence[int], num_layers: int) -> None:
        self.parameters = list(parameters)
        self.num_layers = num_layers
        self._owners = list(owners)
        self.device = local(parameters[0]).device if parameters else torch.device("cpu")
        self.kinds = Kinds()

    @cached_property
    def owner(self) -> Tensor:
        """(n,): the layer index of each parameter."""
        return torch.tensor(self._owners, dtype=torch.int64, device=self.device)

    @cached_property
    def layer_sizes(self) -> Tensor:
        """(layers,): number of entries of each layer over all shards; 1 if it has none."""
        sizes = torch.tensor([float(p.numel()) for p in self.parameters], device=self.device)
        return sizes.new_zeros(self.num_layers).index_add_(0, self.owner, sizes).clamp(min=1)

    @cached_property
    def seen(self) -> Tensor:
        """(layers,): whether a layer has a parameter in this selection."""
        return torch.zeros(self.num_layers, dtype=torch.bool, device=self.device).index_fill_(0, self.owner, True)

    @cached_property
    def shards(self) -> list[tuple[tuple[dist.ProcessGroup, ...], Tensor]]:
        """For each sharding: the process groups that together hold one copy, and an (n,) mask of its parameters.
        Parameters that are not sharded have no groups."""
        ways: dict[Any, tuple[tuple[dist.ProcessGroup, ...], list[bool]]] = {}
        for index, parameter in enumerate(self.parameters):
            mesh, placements = getattr(parameter, "device_mesh", None), getattr(parameter, "placements", ())
            dims = tuple(d for d, placement in enumerate(placements) if placement.is_shard())
            key = (mesh, dims) if dims else None
            if key not in ways:
                groups = tuple(mesh.get_group(d) for d in dims) if mesh is not None else ()
                ways[key] = (groups, [False] * len(self.parameters))
            ways[key][1][index] = True
        return [(groups, torch.tensor(mask, device=self.device)) for groups, mask in ways.values()]

    def total(self, per_parameter: Tensor) -> Tensor:
        """Sum values per parameter (n,) to (layers,), over all shards."""
        empty = per_parameter.new_zeros(self.num_layers)
        return self._reduce(
            per_parameter, lambda values: empty.index_add(0, self.owner, values), dist.ReduceOp.SUM, torch.add
        )

    def largest(self, per_parameter: Tensor) -> Tensor:
        """Maximum of nonnegative values per parameter (n,) -> (layers,), over all shards; NaN propagates."""
        return self._reduce(
            per_parameter, lambda v: largest(v, self.owner, self.num_layers), dist.ReduceOp.MAX, torch.maximum
        )

    def l2(self, per_parameter: Tensor) -> Tensor:
        """Combine L2 norms per parameter (n,) to L2 norms per layer (layers,), over all shards."""
        if len(self.shards) == 1 and not self.shards[0][0]:
            return l2(per_parameter, self.owner, self.num_layers)
        return self.total(per_parameter.double() ** 2).sqrt().float()

    def _reduce(
        self,
        values: Tensor,
        reduce: Callable[[Tensor], Tensor],
        operation: Any,
        join: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        result = None
        for groups, mask in self.shards:
            part = reduce(values if len(self.shards) == 1 else torch.where(mask, values, 0.0))
            for group in groups:
                # A MAX collective may drop NaN. As int32, nonnegative floats keep their order and NaN is the largest.
                maximum = operation == dist.ReduceOp.MAX
                dist.all_reduce(part.view(torch.int32) if maximum else part, operation, group=group)
            result = part if result is None else join(result, part)
        assert result is not None
        return result


class LayerIndex:
    """Maps each parameter to its layer."""

    def __init__(self, layers: Sequence[Sequence[nn.Parameter]]) -> None:
        self.parameters = [p for layer in layers for p in layer]
        self.num_layers = len(layers)
        self._owner = [i for i, layer in enumerate(layers) for _ in layer]
        self._kept: dict[tuple[Any, ...], Selection] = {}

    def select(self, chosen: Iterable[bool]) -> Selection:
        """The parameters whose flag in ``chosen``, one per parameter, is true."""
        which = [i for i, yes in enumerate(chosen) if yes]
        key = (self.parameters[which[0]].device if which else None, *which)
        if key not in self._kept:
            if len(self._kept) == _KEPT:
                del self._kept[next(iter(self._kept))]
            selected = [self.parameters[i] for i in which], [self._owner[i] for i in which]
            self._kept[key] = Selection(*selected, self.num_layers)
        return self._kept[key]


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a sharded tensor (FSDP2); any other tensor unchanged, but detached."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor.detach()


def l2(per_parameter: Tensor, owner: Tensor, num_layers: int) -> Tensor:
    """L2 norms per layer (layers,) from L2 norms per parameter (n,).

    Their squares neither overflow nor underflow: they are added in double precision on a GPU, where a call is what
    costs, and elsewhere after scaling by the largest.
    """
    if per_parameter.is_cuda:
        wide = per_parameter.double()
        return wide.new_zeros(num_layers).index_add_(0, owner, wide * wide).sqrt_().float()
    top = largest(per_parameter, owner, num_layers)
    scale = torch.where((top > 0) & top.isfinite(), top, 1.0)
    ratio = per_parameter / scale[owner]
    total = per_parameter.new_zeros(num_layers).index_add_(0, owner, ratio * ratio)
    return torch.where(top.isfinite(), total.sqrt() * scale, top)


def largest(per_parameter: Tensor, owner: Tensor, num_layers: int) -> Tensor:
    """Largest value per layer; NaN propagates."""
    empty = per_parameter.new_zeros(num_layers)
    return empty.scatter_reduce(0, owner, per_parameter, "amax", include_self=True)
