"""Optimizers against their papers' formulas."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from stabilitylab.config import OPTIMIZERS, OptimConfig, resolve
from stabilitylab.errors import ConfigError
from stabilitylab.train.optim import BUILDERS, build_optimizer, set_learning_rate


def test_stable_adamw_against_algorithm_2() -> None:
    start = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grads = torch.randn(6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grads[4] *= 50  # a spike: RMS_t rises above 1
    p = nn.Parameter(start.clone())
    optimizer = build_optimizer([p], OptimConfig(name="stableadamw", base_lr=1, weight_decay=0.1))
    theta, v, u = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    slowed = 0
    for t, g in enumerate(grads, 1):
        p.grad = g.clone()
        set_learning_rate(optimizer, 0.01)
        optimizer.step()
        b1 = 0.9 * (1 - 0.9 ** (t - 1)) / (1 - 0.9**t)
        b2 = 0.999 * (1 - 0.999 ** (t - 1)) / (1 - 0.999**t)
        v = b1 * v + (1 - b1) * g
        u = b2 * u + (1 - b2) * g**2
        rms = math.sqrt((g**2 / torch.clamp(u, min=1e-16)).mean())
        slowed += rms > 1.5
        lr = 0.01 / max(1.0, rms)
        theta = theta - lr * 0.1 * theta - lr * v / (u.sqrt() + 1e-8)
        torch.testing.assert_close(p.data, theta, rtol=1e-9, atol=1e-12)
    assert slowed == 1


def test_lars_against_the_authors_formula() -> None:
    """Five steps, tensor by tensor in plain Python: decay large enough that where it enters the ratio shows, a gradient
    that is zero, weights that are zero, and vectors, which are left alone."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (5, 4), "kernel": (3, 2, 2, 2), "zero_gradient": (4, 4), "zero_weight": (3, 3), "vector": (6,)}
    weights = {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    weights["zero_weight"].zero_()
    expected = {name: w.clone() for name, w in weights.items()}
    parameters = {name: nn.Parameter(w.clone()) for name, w in weights.items()}
    optimizer = build_optimizer(parameters.values(), OptimConfig(name="lars", weight_decay=0.3, momentum=0.9))
    momenta = {name: torch.zeros_like(w) for name, w in weights.items()}
    for step in range(5):
        lr = 0.5 + step
        for name, p in parameters.items():
            p.grad = torch.randn(p.shape, dtype=torch.float64, generator=generator)
            if name == "zero_gradient":
                p.grad.zero_()
        set_learning_rate(optimizer, lr)
        optimizer.step()
        for name, p in parameters.items():
            w, update = expected[name], p.grad.clone()
            if w.ndim > 1:
                update = update + 0.3 * w
                size, change = math.sqrt((w**2).sum()), math.sqrt((update**2).sum())
                update = update * (0.001 * size / change if size > 0 and change > 0 else 1.0)
            momenta[name] = 0.9 * momenta[name] + update
            expected[name] = w - lr * momenta[name]
            torch.testing.assert_close(p.data, expected[name], rtol=1e-12, atol=1e-14)
    assert not torch.equal(parameters["zero_gradient"].data, weights["zero_gradient"])  # decay alone moves it


def test_each_name_of_the_configuration_has_a_builder() -> None:
    assert set(BUILDERS) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_lowers_a_quadratic_and_survives_a_checkpoint(name: str) -> None:
    def make() -> tuple[nn.Parameter, torch.optim.Optimizer]:
        p = nn.Parameter(torch.full((4, 4), 3.0))
        return p, build_optimizer([p], OptimConfig(name=name, weight_decay=0.0))

    def advance(p: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            p.grad = 2 * p.detach()
            set_learning_rate(optimizer, 10.0 if name == "lars" else 0.05)
            optimizer.step()

    p, optimizer = make()
    advance(p, optimizer, 10)
    assert 0 < p.norm() < 12
    other, resumed = make()
    other.data.copy_(p.data)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    advance(p, optimizer, 5)
    advance(other, resumed, 5)
    assert torch.equal(p, other)


def test_parameters_that_take_no_gradient_are_left_out() -> None:
    trained, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = build_optimizer([trained, frozen], OptimConfig())
    assert [len(g["params"]) for g in optimizer.param_groups] == [1]


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown optimizer 'adamv'; did you mean adamw"):
        resolve({"optim": {"name": "adamv"}})
