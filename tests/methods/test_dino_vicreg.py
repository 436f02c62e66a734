"""DINO and VICReg against their papers, written as plain loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stabilitylab.methods.dino import DINO
from stabilitylab.methods.vicreg import VICReg
from tests.methods.test_losses import dot, loss_of, tiny, two_views, unit


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    e = [math.exp(x - top) for x in row]
    return [x / sum(e) for x in e]


def test_dino_over_three_iterations_with_local_crops() -> None:
    """The centre follows the teacher, the teacher's temperature rises, each view predicts the other views' targets."""
    method = tiny("dino", teacher_temperature=0.07, teacher_temperature_start=0.04, teacher_warmup_iterations=4)
    assert isinstance(method, DINO)
    center = [0.0] * 6
    generator = torch.Generator().manual_seed(3)
    for p in method.momentum_encoder.parameters():  # the teacher differs from the student
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    for iteration in range(3):
        views = [torch.randn(5, 1, 16, 16, dtype=torch.float64, generator=generator) for _ in range(4)]
        student_weights = [unit(w) for w in method.prototypes.weight.tolist()]
        teacher_weights = [unit(w) for w in method.momentum_prototypes.weight.tolist()]
        student = [
            [[dot(unit(z), w) for w in student_weights] for z in method.projector(method.base_encoder(x)).tolist()]
            for x in views
        ]
        teacher = [
            [[dot(unit(z), w) for w in teacher_weights] for z in row.tolist()]
            for row in (method.momentum_projector(method.momentum_encoder(x)) for x in views[:2])
        ]
        temperature = 0.04 + iteration / 4 * 0.03
        total, pairs = 0.0, 0
        for i, rows in enumerate(teacher):
            for j, outputs in enumerate(student):
                if i == j:
                    continue
                pairs += 1
                for t, s in zip(rows, outputs, strict=True):
                    target = softmax([(x - c) / temperature for x, c in zip(t, center, strict=True)])
                    p = softmax([x / 0.1 for x in s])
                    total -= sum(a * math.log(b) for a, b in zip(target, p, strict=True)) / 5
        everyone = [row for rows in teacher for row in rows]
        means = [sum(column) / 10 for column in zip(*everyone, strict=True)]
        loss = method.loss(method.encode(views), method.encode_momentum(views), iteration)
        assert loss.item() == pytest.approx(total / pairs, rel=1e-9)
        center = [0.9 * c + 0.1 * m for c, m in zip(center, means, strict=True)]
        assert method.center.tolist() == pytest.approx(center, rel=1e-5, abs=1e-8)
    assert pairs == 6


def test_dinos_teacher_temperature_and_frozen_last_layer() -> None:
    method = tiny(
        "dino",
        teacher_temperature=0.07,
        teacher_temperature_start=0.03,
        teacher_warmup_iterations=4,
        freeze_prototypes_iterations=2,
    )
    assert isinstance(method, DINO)
    temperatures = [method.teacher_temperature(i) for i in (0, 1, 4, 9)]
    assert temperatures == pytest.approx([0.03, 0.04, 0.07, 0.07])
    for iteration in range(3):
        method.zero_grad()
        loss_of(method, two_views()).backward()
        method.before_update(iteration)
        assert (method.prototypes.weight.grad is None) == (iteration < 2)
    assert all(p.grad is None for p in method.momentum_encoder.parameters())


def test_a_batch_that_is_not_finite_leaves_dinos_centre_alone() -> None:
    method = tiny("dino")
    assert isinstance(method, DINO)
    scores = torch.ones(3, 6, dtype=torch.float64)
    scores[1, 2] = float("nan")
    method.update_center(scores)
    assert method.center.tolist() == pytest.approx([0.1, 0.1, 0.0, 0.1, 0.1, 0.1])


def test_vicreg() -> None:
    method = tiny("vicreg", variance_weight=25.0, invariance_weight=20.0, covariance_weight=2.0)
    assert isinstance(method, VICReg)
    views = two_views(7)
    z1, z2 = (method.projector(method.base_encoder(x)).tolist() for x in views)
    n, d = 7, 8

    def mean(z: list[list[float]], j: int) -> float:
        return sum(row[j] for row in z) / n

    def cov(z: list[list[float]], i: int, j: int) -> float:
        return sum((row[i] - mean(z, i)) * (row[j] - mean(z, j)) for row in z) / (n - 1)

    invariance = sum((a - b) ** 2 for r, s in zip(z1, z2, strict=True) for a, b in zip(r, s, strict=True)) / (n * d)
    variance = [sum(max(0.0, 1 - math.sqrt(cov(z, j, j) + 1e-4)) for j in range(d)) / d for z in (z1, z2)]
    covariance = [sum(cov(z, i, j) ** 2 for i in range(d) for j in range(d) if i != j) / d for z in (z1, z2)]
    expected = 20 * invariance + 25 * sum(variance) / 2 + 2 * sum(covariance)
    assert loss_of(method, views).item() == pytest.approx(expected, rel=1e-9)


def test_a_full_code_queue_changes_swavs_codes_and_holds_the_newest() -> None:
    from stabilitylab.methods.swav import SwAV

    plain, method = tiny("swav"), tiny("swav", code_queue=10, code_queue_start=1)
    assert isinstance(plain, SwAV)
    assert isinstance(method, SwAV)
    seen: list[Tensor] = []
    for iteration in range(4):
        views = list(
            torch.randn(2, 5, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(iteration))
        )
        a = plain.loss(plain.encode(views), None, iteration)
        b = method.loss(method.encode(views), None, iteration)
        # From iteration 1 on it fills, 5 a step; at iteration 3 its 10 rows take part.
        assert torch.equal(a, b) == (iteration < 3)
        z = torch.nn.functional.normalize(method.projector(method.base_encoder(views[0])), dim=1)
        seen = [z.detach(), *seen]
    torch.testing.assert_close(method.queue[0], torch.cat(seen[:2]))
