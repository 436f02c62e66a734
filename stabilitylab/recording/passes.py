"""Passes over many CPU tensors in cache-sized parts, so that consecutive operations reuse data in the cache.

Large tensors are read in place. Small tensors are copied together, because for them a call costs more than the copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

PART = 1 << 16
"""Entries per part: a few arrays of this size fit in the cache of a core."""
_LARGE = 1 << 14
"""Minimum entries of a tensor that is read in place."""
_BLOCK = 1024
"""Products per block. They are added in float32 within a block and in double precision across blocks, as in `norms`."""
_SAFE = 1e-30
"""Sums of squares below this lose accuracy in float32."""


class Parts:
    """Divides tensors of the given ``shapes`` into large ones, read one by one, and small ones, read together."""

    def __init__(self, shapes: Sequence[torch.Size]) -> None:
        self.shapes = list(shapes)
        sizes = [shape.numel() for shape in shapes]
        self.large = [i for i, size in enumerate(sizes) if size >= _LARGE]
        self.small = [i for i, size in enumerate(sizes) if 0 < size < _LARGE]
        self._starts = np.cumsum([0, *(sizes[i] for i in self.small)])[:-1]

    def together(self, tensors: Sequence[Tensor]) -> Tensor:
        """(m,): a copy of all small tensors, concatenated."""
        return torch.cat([tensors[i].reshape(-1) for i in self.small]) if self.small else torch.empty(0, device="cpu")

    def sums(self, flat: np.ndarray) -> np.ndarray:
        """(small tensors,): sums over each small tensor of one value per entry, (m,)."""
        return np.add.reduceat(flat, self._starts, dtype=np.float64) if self.small else np.empty(0)

    def maxima(self, flat: np.ndarray) -> np.ndarray:
        """(small tensors,): the maximum over each small tensor of one value per entry, (m,); NaN propagates."""
        return np.maximum.reduceat(flat, self._starts) if self.small else np.empty(0)


def readable(*tensors: Tensor) -> bool:
    """Whether the tensors are dense float32 on the CPU with the same layout, so that they can be read in place."""
    first = tensors[0]
    return all(
        type(t) is Tensor
        and t.dtype == torch.float32
        and t.device.type == "cpu"
        and t.layout == torch.strided
        and not t.requires_grad
        and t.is_contiguous()
        and t.shape == first.shape
        for t in tensors
    )


def product(a: np.ndarray, b: np.ndarray) -> float:
    """The inner product of two float32 arrays (n,)."""
    whole = len(a) // _BLOCK * _BLOCK
    total = float(np.vecdot(a[:whole].reshape(-1, _BLOCK), b[:whole].reshape(-1, _BLOCK)).sum(dtype=np.float64))
    return total + float(np.dot(a[whole:], b[whole:])) if whole < len(a) else total


def square(values: np.ndarray) -> float:
    """The sum of the squares of float32 values (n,), in double precision if float32 would overflow or underflow."""
    total = product(values, values)
    if _SAFE < total < np.inf or not values.any():
        return total
    wide = values.astype(np.float64)
    return float(np.dot(wide, wide))


@np.errstate(all="ignore")
def ratio_sums(
    parts: Parts, grads: Sequence[Tensor], seconds: Sequence[Sequence[Tensor]], factors: Sequence[tuple[float, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """(n,): the sum of g^2 / max(v + c g^2, floor) over each of n tensors, and (2, n): the sum of g^2 and the largest
    |g|, read while g is in the cache. ``seconds``: one or more v; the largest is used. ``factors``: (c, floor) of each
    tensor."""
    ratio, of_grads = np.zeros(len(grads)), np.zeros((2, len(grads)))
    scratch = torch.empty(PART, device="cpu")

    def ratios(g: Tensor, vs: Sequence[Tensor], c: float | Tensor, floor: float | Tensor) -> Tensor:
        out = scratch[: len(g)] if len(g) <= PART else torch.empty_like(g)
        if isinstance(c, float):
            torch.addcmul(vs[0], g, g, value=c, out=out)
        else:
            torch.add(vs[0], g * g * c, out=out)
        for other in vs[1:]:
            torch.maximum(out, other, out=out)
        return torch.div(g, out.clamp_min_(floor), out=out)

    for i in parts.large:
        c, floor = factors[i]
        columns = zip(*(t.reshape(-1).split(PART) for t in (grads[i], *(v[i] for v in seconds))), strict=True)
        for g, *vs in columns:
            values = g.numpy()
            ratio[i] += product(values, ratios(g, vs, c, floor).numpy())
            of_grads[0, i] += product(values, values)
            of_grads[1, i] = np.maximum(of_grads[1, i], np.maximum(values.max(), -values.min()))
    if parts.small:
        g, *vs = (parts.together(tensors) for tensors in (grads, *seconds))
        if len({factors[i] for i in parts.small}) == 1:
            c, floor = factors[parts.small[0]]
            ratio[parts.small] = parts.sums((g * ratios(g, vs, c, floor)).numpy())
        else:
            sizes = torch.tensor([grads[i].numel() for i in parts.small], device="cpu")
            each = torch.tensor([factors[i] for i in parts.small], device="cpu").repeat_interleave(sizes, 0)
            ratio[parts.small] = parts.sums((g * ratios(g, vs, each[:, 0], each[:, 1])).numpy())
        of_grads[0, parts.small] = parts.sums((g * g).numpy())
        of_grads[1, parts.small] = parts.maxima(g.abs().numpy())
    return ratio, of_grads


class Snapshot:
    """A copy of tensors, to measure how far they have changed since."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._parts = Parts([t.shape for t in tensors])
        self._in_parts = all(readable(t) for t in tensors)
        self._small = self._parts.together(tensors) if self._in_parts else torch.empty(0, device="cpu")
        among = self._parts.large if self._in_parts else range(len(tensors))
        self._copies = {i: tensors[i].clone() for i in among}

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors have the shapes and devices of the copied ones."""
        return (
            [t.shape for t in tensors] == self._parts.shapes
            and self._in_parts == all(readable(t) for t in tensors)
            and all(
                copy.device == tensors[i].device and copy.dtype == tensors[i].dtype for i, copy in self._copies.items()
            )
        )

    def take(self, tensors: Sequence[Tensor]) -> None:
        """Replace the copy."""
        if self._copies:
            torch._foreach_copy_(list(self._copies.values()), [tensors[i] for i in self._copies])
        if self._in_parts:
            self._small = self._parts.together(tensors)

    def advance(self, tensors: Sequence[Tensor], norms: Callable[[Sequence[Tensor]], Tensor]) -> tuple[Tensor, Tensor]:
        """L2 norms (n,) of the changes since the copy and (n,) of the tensors; then replace the copy. ``norms`` is used
        for tensors that cannot be read in parts."""
        if not self._in_parts:
            copies = list(self._copies.values())
            changed, now = norms(torch._foreach_sub(list(tensors), copies)), norms(tensors)
            torch._foreach_copy_(copies, list(tensors))
            return changed, now
        squares = np.zeros((2, len(tensors)))
        scratch = np.empty(PART, np.float32)
        with np.errstate(all="ignore"):
            for i, copy in self._copies.items():
                new, old = tensors[i].numpy().reshape(-1), copy.numpy().reshape(-1)
                for start in range(0, len(new), PART):
                    part, before = new[start : start + PART], old[start : start + PART]
                    squares[0, i] += square(np.subtract(part, before, out=scratch[: len(part)]))
                    squares[1, i] += square(part)
                    before[:] = part
            if self._parts.small:
                small = self._parts.together(tensors)
                for row, values in enumerate((small.numpy() - self._small.numpy(), small.numpy())):
                    squares[row, self._parts.small] = self._parts.sums(np.square(values, dtype=np.float64))
                self._small = small
            found = torch.from_numpy(np.sqrt(squares)).float()
        return found[0], found[1]
