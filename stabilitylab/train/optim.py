"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from stabilitylab.config import OptimConfig, check_choice


def _adamw(parameters: list[nn.Parameter], config: OptimConfig) -> Optimizer:
    # One parameter group: the paper decays every parameter alike.
    return torch.optim.AdamW(
        parameters, lr=0.0, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay, fused=True
    )


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], OptimConfig], Optimizer]] = {"adamw": _adamw}


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> Optimizer:
    """The optimizer over the parameters that take a gradient. The trainer sets the learning rate."""
    make = OPTIMIZERS[check_choice("optimizer", config.name, OPTIMIZERS)]
    return make([p for p in parameters if p.requires_grad], config)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
