"""Norms of many tensors at once: a handful of fused kernels on a GPU, few calls and little memory on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

_SMALL = 1e-15
"""Below, float32 loses the squares of entries."""
_SMALL_TENSOR, _TOGETHER = 1 << 14, 1 << 18
"""Entries of a tensor that is copied beside others of its shape, and of such a copy: it stays in the cache."""


@dataclass
class Kind:
    """Tensors of one device and dtype. Empty ones are neither large nor small."""

    places: list[int]
    """where they stand among all"""
    large: list[int] = field(default_factory=list)
    """those too large to copy, counted within the kind"""
    small: list[list[int]] = field(default_factory=list)
    """small ones of one shape, as many as are read together"""

    @cached_property
    def order(self) -> Tensor:
        """Where the large ones stand, and then the small ones."""
        return torch.tensor(self.large + [i for among in self.small for i in among], dtype=torch.int64)


class Kinds:
    """Which of some tensors are alike. Kept while they stay as they are: to sort a thousand takes as long as to read
    a third of them."""

    def __init__(self) -> None:
        self._marks: list[tuple[torch.device, torch.dtype, torch.Size]] = []
        self._kinds: list[Kind] = []

    def of(self, tensors: Sequence[Tensor]) -> list[Kind]:
        marks = [(t.device, t.dtype, t.shape) for t in tensors]
        if marks != self._marks:
            alike: dict[Any, list[int]] = {}
            for place, (device, dtype, _) in enumerate(marks):
                alike.setdefault((device, dtype), []).append(place)
            self._kinds = [_by_shape(places, [marks[i][2] for i in places]) for places in alike.values()]
            self._marks = marks
        return self._kinds

    def measure(self, compute: Callable[[Sequence[Tensor], Kind], Tensor], tensors: Sequence[Tensor]) -> Tensor:
        """``compute`` gives (k, n) for n tensors of one kind; here for any, on the first one's device."""
        kinds = self.of(tensors)
        if len(kinds) == 1:
            return compute(tensors, kinds[0])
        columns: list[Any] = [None] * len(tensors)
        for kind in kinds:
            found = compute([tensors[i] for i in kind.places], kind).to(tensors[0].device)
            for place, column in zip(kind.places, found.unbind(1), strict=True):
                columns[place] = column
        return torch.stack(columns, 1)


def _by_shape(places: list[int], shapes: Sequence[torch.Size]) -> Kind:
    kind = Kind(places)
    alike: dict[torch.Size, list[int]] = {}
    for i, shape in enumerate(shapes):
        if shape.numel() > _SMALL_TENSOR:
            kind.large.append(i)
        elif shape.numel():
            alike.setdefault(shape, []).append(i)
    for shape, among in alike.items():
        count = _TOGETHER // shape.numel()
        kind.small += [among[k : k + count] for k in range(0, len(among), count)]
    return kind


@torch.no_grad()
def l2_and_largest(tensors: Sequence[Tensor], kind: Kind) -> Tensor:
    """(2, n) float32: L2 norm and largest absolute entry of each tensor; NaN where there is one."""
    if tensors[0].is_cuda:
        maxima = torch._foreach_norm(_filled(tensors), float("inf"))
        return torch.stack([l2_norms(tensors, kind)[0], torch.stack(maxima).float()])
    # Elsewhere memory and calls are what a norm costs. Tensors too large to copy are read twice while in the cache (a
    # minimum and a maximum: torch's infinity norm is five times slower), small ones of one shape in one call.
    norms: list[Tensor] = []
    largest: list[Tensor] = []
    if kind.large:
        lows, highs = zip(*(torch.aminmax(tensors[i]) for i in kind.large), strict=True)
        norms.append(torch.stack([_square(tensors[i]) for i in kind.large]).sqrt().float())
        largest.append(torch.stack([torch.stack(lows), torch.stack(highs)]).abs().amax(0).float())
    together = tensors[0].new_empty(_TOGETHER if kind.small else 0)
    for among in kind.small:
        first = tensors[among[0]]
        rows = together[: len(among) * first.numel()].view(len(among), *first.shape)
        rows = torch.stack([tensors[i] for i in among], out=rows).view(len(among), -1)
        wide = torch.promote_types(rows.dtype, torch.float32)
        norms.append(torch.linalg.vector_norm(rows, dim=1, dtype=wide).float())
        largest.append(rows.abs_().amax(1).float())
    found = torch.zeros(2, len(tensors), device=tensors[0].device)  # an empty shard has no largest entry: zero
    if norms:
        found[:, kind.order] = torch.stack([torch.cat(norms), torch.cat(largest)])
    return torch.stack([_careful(found[0], tensors, (found[1] > 0) & found[1].isfinite()), found[1]])


@torch.no_grad()
def l2_norms(tensors: Sequence[Tensor], kind: Kind) -> Tensor:
    """(1, n) float32: the L2 norm of each tensor."""
    if tensors[0].is_cuda:
        # Memory is what a norm costs; double precision costs no more, and its squares do not leave its range.
        return torch.stack(torch._foreach_norm(_filled(tensors), 2, dtype=torch.float64)).float()[None]
    found = torch.stack([_square(t) for t in tensors]).sqrt().float()
    return _careful(found, tensors, torch.ones_like(found, dtype=torch.bool))[None]


@torch.no_grad()
def count_nonfinite(tensors: Sequence[Tensor], kind: Kind) -> Tensor:
    """(1, n) entries that are NaN or infinite."""
    # Zero times an entry is zero, or NaN where the entry is not finite: what is not zero is counted.
    return torch.stack([(t * 0.0).count_nonzero() for t in tensors]).float()[None]


def _square(tensor: Tensor) -> Tensor:
    """The square of the L2 norm. On the CPU a dot product is as fast as torch's norm, and does not lose digits where a
    tensor is large: of 40 million entries the norm is off by 0.3%."""
    flat = tensor.reshape(-1)
    flat = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
    return torch.dot(flat, flat)


def _careful(norms: Tensor, tensors: Sequence[Tensor], among: Tensor) -> Tensor:
    """Norms that float32's squares may have spoilt, once more in double precision. On the CPU it is known which."""
    doubtful = among & ~((norms > _SMALL) & norms.isfinite())
    if norms.device.type == "cpu" and doubtful.any():
        for i in doubtful.nonzero().flatten().tolist():
            norms[i] = torch.linalg.vector_norm(tensors[i].double())
    return norms


def _filled(tensors: Sequence[Tensor]) -> list[Tensor]:
    """An empty shard has no largest entry: zero."""
    return [t if t.numel() else t.new_zeros(1) for t in tensors]
