"""Norms of many tensors: a few fused kernels on a GPU; few calls and little memory traffic on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SMALL = 1e-15
"""Norms below this lose accuracy because squares underflow in float32."""
_SMALL_TENSOR, _TOGETHER = 1 << 14, 1 << 18
"""Maximum entries of a tensor that is copied into a stack with others of its shape, and of such a stack, which then
fits in the cache."""
_BLOCK = 1024
"""Entries per block. Squares are added in float32 within a block, in one numpy call for all blocks of a tensor, and in
double precision across blocks. A chain of n additions has a relative error of at most n * 2**-24 in the sum and half of
that in the norm. Every processor since SSE2 and NEON adds in at least 4 lanes, so a block is a chain of 256 additions
and the norm is accurate to 256 * 2**-24 / 2 = 7.6e-6 at any size. A single `torch.dot` is off by 1.1% at 200 million
entries on some processors."""
_TORCH_BLOCK = 2048
"""Like `_BLOCK`, for sums computed by torch, which uses at least 8 lanes on any processor."""
_COPIED = 1 << 24
"""Maximum entries that are copied at a time on a GPU."""
_MARK = attrgetter("device", "dtype", "shape")
_THREADED = 1 << 19
"""Minimum entries for which multithreading pays off."""


class Blocks:
    """Splits the float32 tensors at ``places`` into blocks. The split and the buffer for the sums are reused."""

    def __init__(self, places: Sequence[int], sizes: Sequence[int]) -> None:
        cuts = [_cut(sizes[place]) for place in places]
        ends = np.cumsum([count + (rest > 0) for count, _, rest in cuts]).tolist()
        self.places = places
        self.starts = [0, *ends[:-1]]
        self.sums = np.empty(ends[-1] if ends else 0, np.float32)
        self.steps = [
            ((count, length), rest, self.sums[start:end], place)
            for place, (count, length, rest), start, end in zip(places, cuts, self.starts, ends, strict=False)
        ]

    def norms(self, tensors: Sequence[Tensor], out: np.ndarray, largest: np.ndarray | None = None) -> None:
        """Set ``out`` (n,) at ``places`` to the L2 norms of ``tensors``, with one call and no copy per tensor.
        ``largest`` (n,), if given, is set to the largest absolute entries of large tensors while they are cached."""
        if not self.steps:
            return
        try:
            arrays = [tensors[place].numpy() for place in self.places]
        except RuntimeError:  # a tensor requires a gradient
            arrays = [tensors[place].detach().numpy() for place in self.places]
        dot = np.vecdot
        with np.errstate(all="ignore"):
            for array, (shape, rest, sums, place) in zip(arrays, self.steps, strict=True):
                if rest:
                    flat = array.reshape(-1)
                    sums[-1] = np.dot(flat[-rest:], flat[-rest:])
                    blocks = flat[:-rest].reshape(shape)
                    dot(blocks, blocks, sums[:-1])
                else:
                    blocks = array.reshape(shape)
                    dot(blocks, blocks, sums)
                if largest is not None and array.size > _SMALL_TENSOR:
                    largest[place] = max(array.max(), -array.min())
            out[self.places] = np.sqrt(np.add.reduceat(self.sums, self.starts, dtype=np.float64))


def _cut(size: int) -> tuple[int, int, int]:
    """Number of blocks, entries per block and remaining entries. Nothing remains if a suitable block length divides
    ``size``."""
    fewest = max(1, -(-size // _BLOCK))
    for count in range(fewest, min(2 * fewest, fewest + 64)):
        if size % count == 0:
            return count, size // count, 0
    return size // _BLOCK, _BLOCK, size % _BLOCK


@dataclass
class Kind:
    """Tensors with the same device and dtype. Empty tensors are neither large nor small."""

    places: list[int]
    """indices among all tensors"""
    sizes: list[int]
    """number of entries of each"""
    large: list[int] = field(default_factory=list)
    """indices within the kind of tensors that are too large to copy"""
    small: list[list[int]] = field(default_factory=list)
    """groups of small tensors of one shape that are stacked and read together, as indices within the kind"""

    @cached_property
    def order(self) -> Tensor:
        """Indices of the large tensors, then of the small ones."""
        return torch.tensor(self.large + [i for among in self.small for i in among], dtype=torch.int64, device="cpu")

    @cached_property
    def blocks(self) -> Blocks:
        """Blocks of the tensors that are longer than one block."""
        return Blocks([i for i, size in enumerate(self.sizes) if size > _BLOCK], self.sizes)

    @cached_property
    def blocks_of_one_thread(self) -> Blocks:
        """Like `blocks`, without the tensors that are large enough for several threads."""
        return Blocks([i for i, size in enumerate(self.sizes) if _BLOCK < size < _THREADED], self.sizes)


class Kinds:
    """Groups tensors by device and dtype. The grouping is cached until the tensors change: grouping a thousand tensors
    takes as long as reading a third of them."""

    def __init__(self) -> None:
        self._marks: list[tuple[torch.device, torch.dtype, torch.Size]] = []
        self._kinds: list[Kind] = []

    def of(self, tensors: Sequence[Tensor]) -> list[Kind]:
        marks = list(map(_MARK, tensors))
        if marks != self._marks:
            alike: dict[Any, list[int]] = {}
            for place, (device, dtype, _) in enumerate(marks):
                alike.setdefault((device, dtype), []).append(place)
            self._kinds = [_by_shape(places, [marks[i][2] for i in places]) for places in alike.values()]
            self._marks = marks
        return self._kinds

    def measure(self, compute: Callable[[Sequence[Tensor], Kind], Tensor], tensors: Sequence[Tensor]) -> Tensor:
        """Apply ``compute``, which returns (k, n) for n tensors of one kind, to tensors of any kinds. The result is on
        the device of the first tensor."""
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
    kind = Kind(places, [shape.numel() for shape in shapes])
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
    """(2, n) float32: L2 norm and largest absolute entry of each tensor; NaN if the tensor contains NaN."""
    if tensors[0].is_cuda:
        maxima = torch._foreach_norm(_filled(tensors), float("inf"))
        return torch.stack([l2_norms(tensors, kind)[0], torch.stack(maxima).float()])
    # On a CPU, calls dominate the cost of small tensors, so those of one shape are stacked. The largest entry of a
    # large tensor is read right after its norm, or by aminmax: torch's infinity norm is five times slower.
    on_cpu = tensors[0].device.type == "cpu"
    read = np.full(len(tensors), -1.0, np.float32) if on_cpu and tensors[0].dtype == torch.float32 else None
    norms = l2_norms(tensors, kind, read)[0]
    largest: list[Tensor] = []
    if kind.large and read is not None and not (read[kind.large] == -1).any():
        largest.append(torch.from_numpy(read[kind.large]))
    elif kind.large:
        lows, highs = zip(*(torch.aminmax(tensors[i]) for i in kind.large), strict=True)
        largest.append(torch.stack([torch.stack(lows), torch.stack(highs)]).abs().amax(0).float())
    buffer = tensors[0].new_empty(_TOGETHER if kind.small else 0)
    for among in kind.small:
        first = tensors[among[0]]
        rows = buffer[: len(among) * first.numel()].view(len(among), *first.shape)
        rows = torch.stack([tensors[i] for i in among], out=rows).view(len(among), -1)
        largest.append(rows.abs_().amax(1).float())
    found = torch.zeros(len(tensors), device=tensors[0].device)  # stays zero for an empty shard
    if largest:
        found[kind.order] = torch.cat(largest)
    return torch.stack([norms, found])


@torch.no_grad()
def l2_norms(tensors: Sequence[Tensor], kind: Kind, largest: np.ndarray | None = None) -> Tensor:
    """(1, n) float32: the L2 norm of each tensor. ``largest``: see `Blocks.norms`."""
    if tensors[0].is_cuda:
        # Memory bandwidth dominates, so double precision is free, and its squares neither overflow nor underflow.
        return torch.stack(torch._foreach_norm(_filled(tensors), 2, dtype=torch.float64)).float()[None]
    if tensors[0].device.type != "cpu":
        return torch.cat([_row_norms(t.reshape(1, -1)) for t in tensors])[None]
    found = np.zeros(len(tensors), np.float32)
    single = tensors[0].dtype == torch.float32
    threads = torch.get_num_threads() > 1 and torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    if single:
        (kind.blocks_of_one_thread if threads else kind.blocks).norms(tensors, found, largest)
    for i in kind.large:
        if threads and kind.sizes[i] >= _THREADED:
            found[i] = _row_norms(tensors[i].reshape(1, -1))
        elif not single:
            found[i] = _norm(tensors[i])
    for among in kind.small:
        if single and kind.sizes[among[0]] > _BLOCK:
            continue
        rows = torch.stack([tensors[i] for i in among]).reshape(len(among), -1)
        found[among] = _short_norms(rows.numpy()) if single else _row_norms(rows).numpy()
    careful(found, tensors)
    return torch.from_numpy(found[None])


@torch.no_grad()
def count_nonfinite(tensors: Sequence[Tensor], kind: Kind) -> Tensor:
    """(1, n): number of entries of each tensor that are NaN or infinite."""
    # 0 * x is 0 for finite x and NaN otherwise; NaN is not zero.
    if tensors[0].is_cuda:  # two calls, since each takes longer than its kernels
        filled = _filled(tensors)
        zeros = (torch._foreach_mul(filled[among], 0.0) for among in portions([t.numel() for t in filled]))
        return torch.cat([torch.stack(torch._foreach_norm(z, 0, dtype=torch.float64)) for z in zeros]).float()[None]
    return torch.stack([(t * 0.0).count_nonzero() for t in tensors]).float()[None]


def portions(sizes: Sequence[int]) -> Iterator[slice]:
    """Consecutive portions of at most `_COPIED` entries each, or of one tensor."""
    start = entries = 0
    for i, size in enumerate(sizes):
        if i > start and entries + size > _COPIED:
            yield slice(start, i)
            start, entries = i, 0
        entries += size
    yield slice(start, len(sizes))


def _norm(tensor: Tensor) -> float:
    """The L2 norm of one large tensor on the CPU that is not float32."""
    flat = tensor.detach().reshape(-1)
    if tensor.dtype == torch.float64:
        return math.sqrt(torch.dot(flat, flat))
    return math.sqrt(sum(_square(piece.float().numpy()) for piece in flat.split(_TOGETHER)))  # copies stay in the cache


def _square(values: np.ndarray) -> float:
    """The sum of the squares of ``values`` (n,) float32, with one numpy call for all blocks."""
    count, length, _ = _cut(len(values))
    blocks, left = values[: count * length].reshape(count, length), values[count * length :]
    with np.errstate(all="ignore"):
        return float(np.vecdot(blocks, blocks).sum(dtype=np.float64)) + float(np.dot(left, left))


def _short_norms(rows: np.ndarray) -> np.ndarray:
    """(n,) float32: the L2 norm of each row of (n, m), m at most a block."""
    with np.errstate(all="ignore"):
        return np.sqrt(np.vecdot(rows, rows))


def _row_norms(rows: Tensor) -> Tensor:
    """(n,) float32: the L2 norm of each row of (n, m)."""
    if rows.shape[1] <= _TORCH_BLOCK:
        return torch.linalg.vector_norm(rows, dim=1, dtype=_wide(rows)).float()
    return torch.linalg.vector_norm(_block_norms(rows), dim=1, dtype=_widest(rows)).float()


def _block_norms(rows: Tensor) -> Tensor:
    """(n, blocks): the norm of each block of each row of (n, m), including a shorter last block."""
    whole = rows.shape[1] // _TORCH_BLOCK * _TORCH_BLOCK
    blocks = rows[:, :whole].unflatten(1, (-1, _TORCH_BLOCK))
    norms = torch.linalg.vector_norm(blocks, dim=2, dtype=_wide(rows))
    if whole == rows.shape[1]:
        return norms
    rest = torch.linalg.vector_norm(rows[:, whole:], dim=1, dtype=_wide(rows))
    return torch.cat([norms, rest[:, None]], 1)


def _wide(tensor: Tensor) -> torch.dtype:
    """The dtype of the tensor, but at least float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _widest(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.device.type == "cpu" else _wide(tensor)


def careful(norms: np.ndarray, tensors: Sequence[Tensor]) -> None:
    """Recompute in double precision those ``norms`` (n,) of CPU tensors whose squares may have overflowed or
    underflowed."""
    if len(norms) and np.minimum.reduce(norms) > _SMALL and np.maximum.reduce(norms) < np.inf:
        return
    for i in np.flatnonzero(~((norms > _SMALL) & (norms < np.inf))).tolist():
        if tensors[i].numel():
            parts = tensors[i].reshape(-1).split(_TOGETHER)
            norms[i] = torch.stack([torch.linalg.vector_norm(part.double()) for part in parts]).norm()


def _filled(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Replace empty tensors by a zero, since an empty shard has no largest entry."""
    return [t if t.numel() else t.new_zeros(1) for t in tensors]
