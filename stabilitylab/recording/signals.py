"""What is measured per layer; nothing leaves the device.

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

from stabilitylab.recording.norms import count_nonfinite, l2_and_largest, l2_norms
from stabilitylab.recording.selection import LayerIndex, Selection, local

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
        return _entries([p.grad for p in self.chosen.parameters if p.grad is not None])

    @cached_property
    def grad_norms(self) -> Tensor:
        """(2, n) L2 norm and largest absolute entry of each gradient."""
        found = self.chosen.kinds.measure(l2_and_largest, self.grads)
        return found if self.scale is None else found / self.scale

    @cached_property
    def weights(self) -> list[Tensor]:
        return [_real(p) for p in self.held.parameters]


def grad_norm(step: Step) -> Tensor:
    return step.chosen.l2(step.grad_norms[0])


def grad_max(step: Step) -> Tensor:
    return step.chosen.largest(step.grad_norms[1])


def weight_norm(step: Step) -> Tensor:
    return step.held.l2(step.held.kinds.measure(l2_norms, step.weights)[0])


def nonfinite(step: Step) -> Tensor:
    """Share of a layer's gradient entries that are NaN or infinite."""
    if step.chosen.device.type == "cpu":  # the largest entries tell at once where there are none
        odd = ~step.grad_norms[1].isfinite()
        counts = torch.zeros_like(step.grad_norms[1])
        for i in odd.nonzero().flatten().tolist():
            counts[i] = (~step.grads[i].isfinite()).sum()
    else:
        counts = step.chosen.kinds.measure(count_nonfinite, step.grads)[0]
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

    among = step.index.select(map(known, step.index.parameters))
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
    size = step.held.l2(step.held.kinds.measure(l2_norms, changes)[0])
    return size / step.held.l2(step.held.kinds.measure(l2_norms, step.before)[0]).clamp(min=1e-30)


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


def _real(tensor: Tensor) -> Tensor:
    tensor = local(tensor)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _entries(gradients: list[Tensor]) -> list[Tensor]:
    # The usual case, of a thousand gradients a step, is told at once.
    if set(map(type, gradients)) != {Tensor} or {g.layout for g in gradients} != {torch.strided}:
        gradients = [local(g) for g in gradients]
        gradients = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    return [g.abs() if g.is_complex() else g for g in gradients]
