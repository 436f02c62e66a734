"""Optimizers by name: torch's, timm's or ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import timm.optim
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stabilitylab.config import OptimConfig

Groups = list[dict[str, Any]]


class GroupOptimizer(Optimizer):
    """An optimizer that updates the parameters of a group together, in `_update`."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        raise NotImplementedError


class StableAdamW(GroupOptimizer, torch.optim.AdamW):
    """AdamW with the learning rate of each tensor divided by max(1, RMS_t), RMS_t = sqrt(mean(g^2 / max(v_t, eps^2)))
    (arXiv 2304.13013, algorithm 2). This limits the update if the gradient exceeds its second moment."""

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        grads: list[Tensor] = [p.grad for p in params if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p] = {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        states = [self.state[p] for p in params]
        for state in states:
            state["step"] += 1
        means, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        # Debiased betas as in the paper: the averages are unbiased at every step.
        t = int(states[0]["step"])  # a CPU tensor after a checkpoint was loaded
        b1, b2 = beta1 * (1 - beta1 ** (t - 1)) / (1 - beta1**t), beta2 * (1 - beta2 ** (t - 1)) / (1 - beta2**t)
        torch._foreach_lerp_(means, grads, 1 - b1)
        torch._foreach_mul_(squares, b2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - b2)
        ratios = torch._foreach_div(
            torch._foreach_mul(grads, grads), torch._foreach_clamp_min(squares, group["eps"] ** 2)
        )
        rms = torch._foreach_sqrt([r.mean() for r in ratios])
        lr = [group["lr"] / r.clamp(min=1) for r in rms]
        if group["weight_decay"]:
            torch._foreach_mul_(params, [1 - rate * group["weight_decay"] for rate in lr])
        updates = torch._foreach_div(means, torch._foreach_add(torch._foreach_sqrt(squares), group["eps"]))
        torch._foreach_mul_(updates, lr)
        torch._foreach_sub_(params, list(updates))


class LARS(GroupOptimizer):
    """SGD with momentum, with the update of each tensor scaled by trust * |w| / |g + wd w|, as in the MoCo v3 release.
    The scale is 1 if either norm is zero. Tensors with at most one dimension get neither decay nor scaling.
    """

    def __init__(
        self, params: Any, lr: float = 0.0, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        updates = [_update_of(p, group["weight_decay"], group["trust"]) for p in params]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])


def _update_of(p: Tensor, weight_decay: float, trust: float) -> Tensor:
    """The gradient of a tensor, with decay and scaling for matrices. Causes no device sync."""
    assert p.grad is not None
    if p.ndim <= 1:
        return p.grad
    update = p.grad.add(p, alpha=weight_decay)
    weight_norm, update_norm = p.norm(), update.norm()
    scale = trust * weight_norm / update_norm
    return update.mul_(torch.where((weight_norm > 0) & (update_norm > 0), scale, torch.ones_like(scale)))


def _adamw(groups: Groups, config: OptimConfig) -> Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), fused=True)


def _stableadamw(groups: Groups, config: OptimConfig) -> Optimizer:
    return StableAdamW(groups, lr=0.0, betas=(config.beta1, config.beta2))


def _lamb(groups: Groups, config: OptimConfig) -> Optimizer:
    # Disable the built-in clipping: clipping is a mitigation and recorded as one.
    return timm.optim.Lamb(groups, lr=0.0, betas=(config.beta1, config.beta2), max_grad_norm=None)


def _lars(groups: Groups, config: OptimConfig) -> Optimizer:
    return LARS(groups, lr=0.0, momentum=config.momentum)


def _sgd(groups: Groups, config: OptimConfig) -> Optimizer:
    return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum)


BUILDERS: dict[str, Callable[[Groups, OptimConfig], Optimizer]] = {  # one for each of config's OPTIMIZERS
    "adamw": _adamw,
    "stableadamw": _stableadamw,
    "lamb": _lamb,
    "lars": _lars,
    "sgd": _sgd,
}


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> Optimizer:
    """Build the optimizer of the trainable parameters. The trainer sets the learning rate.

    There is one parameter group, because the paper decays all parameters equally and `LARS` distinguishes matrices from
    vectors. With ``decay = "matrices"`` there are two groups: parameters with at most one dimension are not decayed.
    """
    make = BUILDERS[config.name]
    trained = [p for p in parameters if p.requires_grad]
    if config.decay == "all":
        return make([{"params": trained, "weight_decay": config.weight_decay}], config)
    decayed, plain = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups: Groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0, "decayed": False},
    ]
    return make([group for group in groups if group["params"]], config)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def set_weight_decay(optimizer: Optimizer, weight_decay: float) -> None:
    """Set the weight decay of all groups except those without decay."""
    for group in optimizer.param_groups:
        if group.get("decayed", True):
            group["weight_decay"] = weight_decay
