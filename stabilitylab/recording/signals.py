"""What is measured per layer. A handful of fused kernels for all parameters; nothing leaves the device.

Each signal is a function of a `Step` and gives one number a layer, never negative, so that -1 can stand for
"not measured".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stabilitylab.recording.selection import LayerIndex, Selection, local

_SMALL = 1e-15
"""Below, float32 loses the squares of entries."""
_SMALL_TENSOR, _TOGETHER = 1 << 14, 1 << 17
"""Entries of a gradient that is copied beside others of its shape, and of such a copy: it stays in the cache."""
_CHUNK = 1 << 24
"""Entries that a signal with copies of the gradients copies at a time."""


@dataclass
class Step:
    """What the signals of one iteration read. ``chosen``: the parameters that got a gradient; ``held``: those whose
    weights are measured; ``scale``: by how much the gradients are scaled still."""

    index: LayerIndex
    chosen: Selection
    held: Selection
    optimizer: Optimizer | None = None
    scale: float | Tensor | None = None
    before: list[Tensor] | None = None  # the weights held before the last update, for update_ratio

    @cached_property
    def grads(self) -> list[Tensor]:
        """The entries of each gradient that are stored, real, in this process."""
        return [_entries(p.grad) for p in self.chosen.parameters if p.grad is not None]

    @cached_property
    def grad_norms(self) -> Tensor:
        """(2, n) L2 norm and largest absolute entry of each gradient."""
        found = by_kind(l2_and_largest, self.grads)
        return found if self.scale is None else found / self.scale

    @cached_property
    def weights(self) -> list[Tensor]:
        return [_real(p) for p in self.held.parameters]


def grad_norm(step: Step) -> Tensor:
    return step.chosen.l2(step.grad_norms[0])


def grad_max(step: Step) -> Tensor:
    return step.chosen.largest(step.grad_norms[1])


def weight_norm(step: Step) -> Tensor:
    return step.held.l2(by_kind(l2_norms, step.weights)[0])


def nonfinite(step: Step) -> Tensor:
    """Share of a layer's gradient entries that are NaN or infinite."""
    if step.chosen.device.type == "cpu":  # the largest entries tell at once where there are none
        odd = ~step.grad_norms[1].isfinite()
        counts = torch.zeros_like(step.grad_norms[1])
        for i in odd.nonzero().flatten().tolist():
            counts[i] = (~step.grads[i].isfinite()).sum()
    else:
        counts = by_kind(_count_nonfinite, step.grads)[0]
    return step.chosen.total(counts) / step.chosen.layer_sizes


def adam_rms(step: Step) -> Tensor:
    """RMS_t = sqrt(mean(g^2 / max(v_t, eps^2))), v_t with this gradient already in it (arXiv 2304.13013). Over the
    parameters of which the optimizer keeps the second moment; -1 for a layer without any."""
    optimizer = step.optimizer
    assert optimizer is not None
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}

    def known(p: nn.Parameter) -> bool:
        state = optimizer.state.get(p)
        return p.grad is not None and "betas" in groups.get(p, ()) and (not state or "exp_avg_sq" in state)

    among = step.index.select(known)
    if not among.parameters:
        return torch.full((step.chosen.num_layers,), -1.0, device=step.chosen.device)
    sums: dict[nn.Parameter, Tensor] = {}
    for part in _alike(among.parameters, lambda p: (local(p).device, id(groups[p]))):
        group, states = groups[part[0]], [optimizer.state.get(p) or {} for p in part]
        sums |= dict(zip(part, _adam_sums([_whole(p.grad) for p in part], states, group, step.scale), strict=True))
    total = among.total(torch.stack([sums[p].to(among.device) for p in among.parameters]))
    return torch.where(among.seen, (total / among.layer_sizes).sqrt(), -1.0)


def _adam_sums(
    grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any], scale: float | Tensor | None
) -> list[Tensor]:
    """Sum of g^2 / max(v, eps^2) for each parameter. What is on the device stays there."""
    beta2, eps = _known(group["betas"][1]), float(group["eps"])
    if scale is not None:
        grads = [g / scale for g in grads]
    squares = torch._foreach_mul(grads, grads)
    v = list(torch._foreach_mul(squares, 1 - beta2))
    past = [(i, state) for i, state in enumerate(states) if state]
    if past:
        kept = torch._foreach_mul([_whole(state["exp_avg_sq"]) for _, state in past], beta2)
        torch._foreach_add_([v[i] for i, _ in past], kept)
    for i, state in past:
        if "max_exp_avg_sq" in state:
            v[i] = torch.maximum(v[i], _whole(state["max_exp_avg_sq"]))
    steps = [_known(state.get("step", 0)) for state in states]
    counted = [t for t in steps if isinstance(t, Tensor)]
    if counted:
        zero = torch.zeros_like(counted[0])
        made = torch.stack([t if isinstance(t, Tensor) else zero + t for t in steps])
        bias: Any = (1 - beta2 ** (made + 1)).unbind()
    else:
        bias = [1 - beta2 ** (t + 1) for t in steps]
    torch._foreach_div_(v, bias)
    torch._foreach_clamp_min_(v, eps**2)
    torch._foreach_div_(squares, v)
    return list(torch._foreach_norm(squares, 1)) if squares[0].is_cuda else [s.sum() for s in squares]


def _known(number: float | Tensor) -> float | Tensor:
    """A number; on the device, a tensor: asking for it would wait."""
    return number if isinstance(number, Tensor) and number.device.type != "cpu" else float(number)


def _whole(tensor: Tensor | None) -> Tensor:
    """All entries, real and float32, of this process's shard."""
    assert tensor is not None
    return _real(tensor.to_dense() if tensor.is_sparse else tensor).float()


def _alike(parameters: Sequence[nn.Parameter], key: Callable[[nn.Parameter], Any]) -> Iterator[list[nn.Parameter]]:
    """Parameters with the same key, as many at a time as may be copied."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for p in parameters:
        groups.setdefault(key(p), []).append(p)
    for group in groups.values():
        part: list[nn.Parameter] = []
        entries = 0
        for p in group:
            size = local(p).numel()
            if part and entries + size > _CHUNK:
                yield part
                part, entries = [], 0
            part.append(p)
            entries += size
        yield part


def update_ratio(step: Step) -> Tensor:
    """L2 size of the last update over that of the weights before it."""
    assert step.before is not None
    changes = torch._foreach_sub(step.weights, step.before)
    size = step.held.l2(by_kind(l2_norms, changes)[0])
    return size / step.held.l2(by_kind(l2_norms, step.before)[0]).clamp(min=1e-30)


SIGNALS: dict[str, Callable[[Step], Tensor]] = {
    "grad_norm": grad_norm,
    "grad_max": grad_max,
    "weight_norm": weight_norm,
    "nonfinite": nonfinite,
    "adam_rms": adam_rms,
    "update_ratio": update_ratio,
}
OF_FORWARD = ("activation_max", "attention_max")  # measured by hooks: see activations.py
OF_WEIGHTS = ("weight_norm", "update_ratio")
DEFAULT = ("grad_norm", "grad_max")


def by_kind(compute: Callable[[Sequence[Tensor]], Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """``compute`` gives (k, n) for n tensors of one device and dtype; here for any, on the first one's device."""
    kinds: dict[Any, list[int]] = {}
    for index, t in enumerate(tensors):
        kinds.setdefault((t.device, t.dtype), []).append(index)
    if len(kinds) == 1:
        return compute(tensors)
    columns: list[Any] = [None] * len(tensors)
    for places in kinds.values():
        found = compute([tensors[i] for i in places]).to(tensors[0].device)
        for place, column in zip(places, found.unbind(1), strict=True):
            columns[place] = column
    return torch.stack(columns, 1)


@torch.no_grad()
def l2_and_largest(tensors: Sequence[Tensor]) -> Tensor:
    """(2, n) float32: L2 norm and largest absolute entry of each tensor; NaN where there is one."""
    if tensors[0].is_cuda:
        maxima = torch._foreach_norm(_filled(tensors), float("inf"))
        return torch.stack([l2_norms(tensors)[0], torch.stack(maxima).float()])
    # Elsewhere memory and calls are what a norm costs. Tensors too large to copy are read twice while in the cache (a
    # minimum and a maximum: torch's infinity norm is five times slower), small ones of one shape in one call.
    large, small = _by_shape(tensors)
    norms: list[Tensor] = []
    largest: list[Tensor] = []
    places = list(large)
    if large:
        lows, highs = zip(*(torch.aminmax(tensors[i]) for i in large), strict=True)
        norms.append(torch.stack([_square(tensors[i]) for i in large]).sqrt().float())
        largest.append(torch.stack([torch.stack(lows), torch.stack(highs)]).abs().amax(0).float())
    for indices in small:
        rows = torch.stack([tensors[i] for i in indices]).view(len(indices), -1)
        norms.append(
            torch.linalg.vector_norm(rows, dim=1, dtype=torch.promote_types(rows.dtype, torch.float32)).float()
        )
        largest.append(rows.abs_().amax(1).float())
        places += indices
    found = torch.zeros(2, len(tensors), device=tensors[0].device)  # an empty shard has no largest entry: zero
    if places:
        found[:, places] = torch.stack([torch.cat(norms), torch.cat(largest)])
    return torch.stack([_careful(found[0], tensors, (found[1] > 0) & found[1].isfinite()), found[1]])


def _by_shape(tensors: Sequence[Tensor]) -> tuple[list[int], list[list[int]]]:
    """Places of the large tensors, and of small ones of one shape as many as are read together. Empty ones are none."""
    large: list[int] = []
    shapes: dict[torch.Size, list[int]] = {}
    for i, t in enumerate(tensors):
        if t.numel() > _SMALL_TENSOR:
            large.append(i)
        else:
            shapes.setdefault(t.shape, []).append(i)
    chunks = []
    for shape, places in shapes.items():
        count = _TOGETHER // max(shape.numel(), 1)
        if shape.numel():
            chunks += [places[k : k + count] for k in range(0, len(places), count)]
    return large, chunks


@torch.no_grad()
def l2_norms(tensors: Sequence[Tensor]) -> Tensor:
    """(1, n) float32: the L2 norm of each tensor."""
    if tensors[0].is_cuda:
        # Memory is what a norm costs; double precision costs no more, and its squares do not leave its range.
        return torch.stack(torch._foreach_norm(_filled(tensors), 2, dtype=torch.float64)).float()[None]
    found = torch.stack([_square(t) for t in tensors]).sqrt().float()
    return _careful(found, tensors, torch.ones_like(found, dtype=torch.bool))[None]


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


def _count_nonfinite(tensors: Sequence[Tensor]) -> Tensor:
    """(1, n) entries that are NaN or infinite."""
    # Zero times an entry is zero, or NaN where the entry is not finite: what is not zero is counted.
    return torch.stack([(t * 0.0).count_nonzero() for t in tensors]).float()[None]


def _real(tensor: Tensor) -> Tensor:
    tensor = local(tensor)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _entries(gradient: Tensor) -> Tensor:
    if type(gradient) is Tensor and gradient.layout is torch.strided and not gradient.is_complex():
        return gradient  # the usual case, of a thousand tensors a step
    gradient = local(gradient)
    gradient = gradient.coalesce().values() if gradient.is_sparse else gradient
    return gradient.abs() if gradient.is_complex() else gradient
