"""RMS_t of AdamW: how far the gradient runs ahead of the second moment that the optimizer keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stabilitylab.recording.measurement import Measured, Step, measures, real
from stabilitylab.recording.selection import local

_CHUNK = 1 << 24
"""Entries of gradients that are copied at a time."""


@measures("adam_rms")
def adam_rms(step: Step) -> Measured:
    """RMS_t = sqrt(mean(g^2 / max(v_t, eps^2))), v_t with this gradient already in it (arXiv 2304.13013). Over the
    parameters of which the optimizer keeps the second moment; not measured in a layer without any."""
    optimizer = step.optimizer
    assert optimizer is not None
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}

    def known(p: nn.Parameter) -> bool:
        state = optimizer.state.get(p)
        return p.grad is not None and "betas" in groups.get(p, ()) and (not state or "exp_avg_sq" in state)

    among = step.index.select(map(known, step.index.parameters))
    if not among.parameters:
        return step.nothing
    sums: dict[nn.Parameter, Tensor] = {}
    for part in _alike(among.parameters, lambda p: (local(p).device, id(groups[p]))):
        group, states = groups[part[0]], [optimizer.state.get(p) or {} for p in part]
        sums |= dict(zip(part, _adam_sums([_whole(p.grad) for p in part], states, group, step.scale), strict=True))
    total = among.total(torch.stack([sums[p].to(among.device) for p in among.parameters]))
    return Measured((total / among.layer_sizes).sqrt(), among.seen)


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
    return real(tensor.to_dense() if tensor.is_sparse else tensor).float()


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
