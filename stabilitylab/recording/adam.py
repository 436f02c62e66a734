"""RMS_t of AdamW: how much larger the gradient is than the optimizer's second-moment estimate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stabilitylab.recording.measurement import Measured, Measurement, Step, measures, real
from stabilitylab.recording.norms import careful
from stabilitylab.recording.passes import Parts, ratio_sums, readable

_CHUNK = 1 << 24
"""Maximum number of gradient entries copied at a time."""

_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
"""Parameters whose gradients lose nothing as float32."""

_OTHERWISE = {
    "adamax": "an infinity norm in place of the second moment",
    "adan": "the second moment of a quantity other than the gradient",
    "mars": "the second moment of a quantity other than the gradient",
    "adopt": "a second moment that excludes the current gradient",
    "soap": "the second moment in a rotated basis",
    "kron": "no second moment",
    "adafactor": "the second moment factored by rows and columns",
}
"""Optimizers with betas or a state of the same name that have another meaning."""


@measures("adam_rms")
class AdamRMS(Measurement):
    """RMS_t = sqrt(mean(g^2 / max(v_t, eps^2))), where v_t includes the current gradient (arXiv 2304.13013). The mean
    is over the parameters for which the optimizer keeps a second moment; a layer without any is not measured. ``why``
    states what this optimizer keeps instead."""

    def __init__(self) -> None:
        self._value: Measured | None = None

    def prepare(self, step: Step) -> None:
        """Measure before the other signals: the pass over the gradients gives their norms too."""
        self._value = self._of(step) if step.optimizer is not None else None

    def measure(self, step: Step) -> Measured | None:
        return self._value

    def _of(self, step: Step) -> Measured | None:
        assert step.optimizer is not None
        optimizer = _innermost(step.optimizer)
        name = type(optimizer).__name__
        kept = next((what for part, what in _OTHERWISE.items() if part in name.lower()), "no Adam second moment")
        self.why = f"{name} keeps {kept}"
        if any(part in name.lower() for part in _OTHERWISE):
            return None
        groups = {p: group for group in optimizer.param_groups for p in group["params"]}

        def known(p: nn.Parameter) -> bool:
            group, state = groups.get(p, {}), optimizer.state.get(p)
            if p.grad is None or "betas" not in group or "eps" not in group:
                return False
            return not state or ("exp_avg_sq" in state and _made(state, group) is not None)

        among = step.index.select(map(known, step.index.parameters))
        if not among.parameters:
            return None
        sums: dict[nn.Parameter, Tensor] = {}
        norms: dict[nn.Parameter, Tensor] = {}
        for part in _alike(among.parameters, lambda p: (real(p).device, id(groups[p]))):
            group, states = groups[part[0]], [optimizer.state.get(p) or {} for p in part]
            grads = [_whole(p.grad) for p in part]
            if step.scale is None and (ratios := _sums_in_parts(grads, states, group)) is not None:
                sums |= dict(zip(part, ratios[0], strict=True))
                norms |= dict(zip(part, ratios[1], strict=True))
            else:
                sums |= dict(zip(part, _adam_sums(grads, states, group, step.scale), strict=True))
        complete = among is step.chosen and len(norms) == len(among.parameters)
        if complete and all(p.dtype in _SINGLE for p in among.parameters):
            step.grad_norms = torch.stack([norms[p] for p in among.parameters], 1)
        total = among.total(torch.stack([sums[p].to(among.device) for p in among.parameters]))
        return Measured((total / among.layer_sizes).sqrt(), among.seen)


def _innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer that holds the state, inside wrappers such as Lookahead or accelerate's."""
    for _ in range(4):
        inner = next(
            (o for n in ("optimizer", "base_optimizer", "_base_optimizer") if (o := getattr(optimizer, n, None))), None
        )
        if not isinstance(inner, Optimizer):
            break
        optimizer = inner
    return optimizer


def _made(state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    """Number of updates made, as counted in the state or in the group (``step``, or ``k`` in schedule-free). None if
    there is no counter."""
    return next((where[key] for where, key in ((state, "step"), (group, "step"), (group, "k")) if key in where), None)


def _adam_sums(
    grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any], scale: float | Tensor | None
) -> list[Tensor]:
    """Sum of g^2 / max(v, eps^2) for each parameter, computed without a device sync."""
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
    steps = _numbers([_made(state, group) if state else 0 for state in states])
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


def _seconds(state: Mapping[str, Any]) -> list[Tensor]:
    return [state[name] for name in ("exp_avg_sq", "max_exp_avg_sq") if name in state]


def _sums_in_parts(
    grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
) -> tuple[Sequence[Tensor], Sequence[Tensor]] | None:
    """Like `_adam_sums`, and (L2 norm, largest absolute entry) of each gradient, with one pass over dense float32
    tensors on the CPU: v_t / beta2 = v_(t-1) + (1 - beta2) / beta2 g^2 is one operation. None for other tensors."""
    beta2, eps = _known(group["betas"][1]), float(group["eps"])
    if not isinstance(beta2, float) or beta2 <= 0 or not all(states):
        return None
    kept_by = [_seconds(state) for state in states]
    if len(set(map(len, kept_by))) > 1 or not all(map(readable, *zip(*kept_by, strict=True), grads)):
        return None
    kept = list(map(list, zip(*kept_by, strict=True)))  # second moments and, for AMSGrad, their maxima
    made = _numbers([_made(state, group) for state in states])
    bias = [(1 - beta2 ** (float(count) + 1)) / beta2 for count in made]
    kept = [kept[0], *(list(torch._foreach_div(top, beta2)) for top in kept[1:])]
    factors = [((1 - beta2) / beta2, eps**2 * b) for b in bias]
    sums, (squares, largest) = ratio_sums(Parts([g.shape for g in grads]), grads, kept, factors)
    with np.errstate(all="ignore"):
        norms = np.sqrt(squares).astype(np.float32)
    careful(norms, grads)
    of_grads = torch.from_numpy(np.stack([norms, largest.astype(np.float32)]))
    return torch.from_numpy(sums * np.array(bias)).float().unbind(), of_grads.unbind(1)


def _known(number: float | Tensor) -> float | Tensor:
    """``number`` as a float, or unchanged if it is a tensor on an accelerator: reading it would wait for the device."""
    return number if isinstance(number, Tensor) and number.device.type != "cpu" else float(number)


def _numbers(counts: list[float | Tensor]) -> list[float | Tensor]:
    """`_known` of each; counters on the CPU are read in one call."""
    tensors = [count for count in counts if isinstance(count, Tensor) and count.device.type == "cpu"]
    if tensors and len(tensors) == len(counts):
        read: list[float | Tensor] = torch.stack(tensors).tolist()
        return read
    return [_known(count) for count in counts]


def _whole(tensor: Tensor | None) -> Tensor:
    """This process's shard as a dense, real float32 tensor."""
    assert tensor is not None
    return real(tensor.to_dense() if tensor.is_sparse else tensor).float()


def _alike(parameters: Sequence[nn.Parameter], key: Callable[[nn.Parameter], Any]) -> Iterator[list[nn.Parameter]]:
    """Yield groups of parameters with the same key and at most `_CHUNK` entries in total."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for p in parameters:
        groups.setdefault(key(p), []).append(p)
    for group in groups.values():
        part: list[nn.Parameter] = []
        entries = 0
        for p in group:
            size = real(p).numel()
            if part and entries + size > _CHUNK:
                yield part
                part, entries = [], 0
            part.append(p)
            entries += size
        yield part
