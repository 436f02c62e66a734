"""Curvature on problems whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stabilitylab.cause.sharpness import (
    ALL,
    Curvature,
    Sharpness,
    curvature,
    edge_of_stability,
    lanczos,
    preconditioner,
    sharpness_run,
)
from stabilitylab.studies import train_run
from tests.cause.conftest import tiny_config


def symmetric(spectrum: np.ndarray, seed: int) -> np.ndarray:
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum),) * 2))[0]
    return (basis * spectrum) @ basis.T


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_eigenvalue_lies_within_its_error_and_within_a_percent(seed: int) -> None:
    spectrum = np.concatenate([np.random.default_rng(seed).uniform(-20, 10, 299), [12.5]])
    matrix = symmetric(spectrum, seed)
    value, error = lanczos(lambda v: matrix @ v, 300)
    assert value == pytest.approx(12.5, rel=0.01)
    assert abs(value - 12.5) <= error + 1e-9
    # With too few steps the value is too low, and the error still holds an eigenvalue.
    rough, wide = lanczos(lambda v: matrix @ v, 300, steps=4)
    assert rough < 12
    assert np.abs(spectrum - rough).min() <= wide
    assert wide > 0.1


def test_a_small_matrix_is_exact() -> None:
    value, error = lanczos(lambda v: np.diag([3.0, -1.0]) @ v, 2)
    assert (value, error) == (pytest.approx(3.0), pytest.approx(0.0, abs=1e-9))


def test_a_quadratic_whole_and_by_part() -> None:
    matrix = symmetric(np.linspace(0.1, 8.0, 40), 0)
    hessian = torch.from_numpy(matrix).float()
    first, second = (nn.Parameter(torch.randn(20, generator=torch.Generator().manual_seed(i))) for i in (0, 1))
    w = torch.cat([first, second])
    loss = 0.5 * w @ hessian @ w
    g = matrix @ w.detach().double().numpy()
    along, value, error = curvature(loss, [first, second])
    assert along == pytest.approx(g @ matrix @ g / (g @ g), rel=1e-3)
    assert value == pytest.approx(8.0, rel=0.01)
    assert error < 0.08
    _, part, _ = curvature(loss, [first])
    assert part == pytest.approx(np.linalg.eigvalsh(matrix[:20, :20])[-1], rel=0.01)


def test_the_preconditioned_hessian_of_adam() -> None:
    """Against the matrix written out, with Adam's own second moments after some of its steps."""
    matrix = symmetric(np.linspace(0.5, 30.0, 25), 3)
    hessian = torch.from_numpy(matrix).float()
    w = nn.Parameter(torch.randn(25, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.AdamW([w], lr=1e-2, betas=(0.9, 0.99), eps=1e-4)
    squares = np.zeros(25)
    for _ in range(5):
        optimizer.zero_grad()
        (0.5 * w @ hessian @ w).backward()
        squares = 0.99 * squares + 0.01 * w.grad.double().numpy() ** 2
        optimizer.step()
    p = np.sqrt(squares / (1 - 0.99**5)) + 1e-4
    expected = np.linalg.eigvalsh(matrix / np.sqrt(np.outer(p, p)))[-1]
    _, value, _ = curvature(0.5 * w @ hessian @ w, [w], preconditioner(optimizer, [w]))
    assert value == pytest.approx(expected, rel=0.01)


def test_the_edge_is_where_the_optimizer_really_becomes_unstable() -> None:
    """A quadratic a little below and a little above the edge, with the optimizers' own steps."""

    def grows(eigenvalue: float, optimizer: torch.optim.Optimizer, w: nn.Parameter) -> bool:
        for _ in range(400):
            optimizer.zero_grad()
            (0.5 * eigenvalue * w * w).sum().backward()
            optimizer.step()
        return not bool(w.detach().abs().max() < 10)

    for momentum in (0.0, 0.9):
        edge = edge_of_stability("sgd", 0.1, momentum)
        for factor in (0.95, 1.05):
            w = nn.Parameter(torch.ones(1))
            assert grows(factor * edge, torch.optim.SGD([w], lr=0.1, momentum=momentum), w) == (factor > 1)
    assert edge_of_stability("adamw", 0.1, 0.9) == pytest.approx(380)
    assert edge_of_stability("lamb", 0.1, 0.9) is None


def test_verdicts() -> None:
    def verdict(eigenvalue: float, error: float, edge: float | None) -> str:
        return Curvature(0, "a", 0.1, 0.0, eigenvalue, error, 20.0, edge).verdict

    assert [verdict(40, 1, 38), verdict(30, 1, 38), verdict(38.5, 1, 38), verdict(40, 1, None)] == [
        "above",
        "below",
        "not resolved",
        "not judged",
    ]


def test_the_sentence_says_what_is_not_resolved() -> None:
    def sentence(*eigenvalues: float) -> str:
        return Sharpness(
            tuple(Curvature(t, ALL, 0.1, 0.0, x, 1.0, 20.0, 38.0) for t, x in enumerate(eigenvalues))
        ).sentence()

    assert "(not resolved); no other iteration was measured." in sentence(38.5)
    assert "at iteration 1, 1.05 of the optimizer's edge 38 (above it)" in sentence(float("nan"), 40)


@pytest.mark.slow
def test_a_compiled_run_is_measured_without_its_compiled_code(tmp_path: Path) -> None:
    """Compiled code cannot be differentiated twice."""
    found = []
    for name, compiled in (("eager", False), ("compiled", True)):
        run = train_run(tiny_config(compile=compiled, iterations=12), tmp_path, name).path
        found.append(sharpness_run(run, at=[5], by_layer=False).curvatures[0])
    assert found[1].directional == pytest.approx(found[0].directional, rel=1e-2)
    assert found[1].eigenvalue > 0
