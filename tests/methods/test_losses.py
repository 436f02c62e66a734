"""SimCLR, BYOL, SwAV and MoCo v2 against their papers, written as plain loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stabilitylab.config import resolve
from stabilitylab.errors import ConfigError
from stabilitylab.methods import METHODS, build_method
from stabilitylab.methods.base import Method
from stabilitylab.methods.byol import squared_distance
from stabilitylab.methods.mocov2 import MoCoV2
from stabilitylab.methods.simclr import nt_xent
from stabilitylab.methods.swav import SwAV, sinkhorn


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def tiny(name: str, **more: object) -> Method:
    small = {"hidden_dim": 24, "out_dim": 8, "num_prototypes": 6, "queue_size": 10}
    config = resolve({"model": {"embed_dim": 16, "depth": 2}, "method": {"name": name, **small, **more}})
    torch.manual_seed(0)
    method = build_method(config, channels=1)
    assert isinstance(method, Method)
    return method.double()


def two_views(n: int = 5) -> list[Tensor]:
    return list(torch.randn(2, n, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def loss_of(method: Method, views: list[Tensor]) -> Tensor:
    momentum = method.encode_momentum(views) if method.uses_momentum_encoder else None
    return method.loss(method.encode(views), momentum)


def test_nt_xent() -> None:
    z1, z2 = torch.randn(2, 4, 3, dtype=torch.float64)
    rows = [unit(r) for r in torch.cat([z1, z2]).tolist()]
    total = 0.0
    for i, row in enumerate(rows):
        positive = (i + 4) % 8
        logits = {j: dot(row, other) / 0.5 for j, other in enumerate(rows) if j != i}
        total += -logits[positive] + math.log(sum(math.exp(x) for x in logits.values()))
    assert nt_xent(z1, z2, 0.5).item() == pytest.approx(total / 8, rel=1e-12)


def test_byol_distance() -> None:
    p, z = torch.randn(2, 6, 5, dtype=torch.float64)
    pairs = zip(p.tolist(), z.tolist(), strict=True)
    expected = sum(sum((a - b) ** 2 for a, b in zip(unit(x), unit(y), strict=True)) for x, y in pairs) / 6
    assert squared_distance(p, z).item() == pytest.approx(expected, rel=1e-12)


def test_byol_is_symmetrised() -> None:
    method = tiny("byol")
    views = two_views()
    p1, p2 = (method.predictor(method.projector(method.base_encoder(x))) for x in views)
    z1, z2 = (method.momentum_projector(method.momentum_encoder(x)) for x in views)
    expected = squared_distance(p1, z2) + squared_distance(p2, z1)
    torch.testing.assert_close(loss_of(method, views), expected)
    assert [type(m).__name__ for m in method.projector][-1] == "Linear"  # no BN after the last layer


def test_sinkhorn_against_loops() -> None:
    scores = torch.randn(5, 3, dtype=torch.float64) / 4
    q = [[math.exp(x / 0.05) for x in row] for row in scores.tolist()]
    for _ in range(3):
        for k in range(3):
            column = sum(row[k] for row in q)
            for row in q:
                row[k] /= column * 3
        q = [[x / (sum(row) * 5) for x in row] for row in q]
    expected = torch.tensor(q) * 5
    torch.testing.assert_close(sinkhorn(scores, 0.05, 3), expected.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(expected.sum(1), torch.ones(5))


def test_swav_predicts_the_other_views_codes() -> None:
    method = tiny("swav", sinkhorn_epsilon=0.05)
    assert isinstance(method, SwAV)
    views = two_views()
    got = loss_of(method, views)
    weights = [unit(row) for row in method.prototypes.weight.tolist()]
    scores = [
        [[dot(unit(z), w) for w in weights] for z in method.projector(method.base_encoder(x)).tolist()] for x in views
    ]
    codes = [sinkhorn(torch.tensor(s, dtype=torch.float64), 0.05, 3).tolist() for s in scores]
    total = 0.0
    for code, other in ((0, 1), (1, 0)):
        for q, s in zip(codes[code], scores[other], strict=True):
            norm = math.log(sum(math.exp(x / 0.1) for x in s))
            total -= sum(a * (x / 0.1 - norm) for a, x in zip(q, s, strict=True))
    assert got.item() == pytest.approx(total / 5 / 2, rel=1e-5)


def test_swav_takes_local_crops_of_another_size_and_no_other_method_does() -> None:
    config = resolve({"data": {"local_crops": 3}, "method": {"name": "swav"}})
    method = build_method(config, channels=1)
    assert isinstance(method, SwAV)
    views = [torch.randn(4, 1, size, size) for size in (16, 16, 8, 8, 8)]
    features = method.encode(views)
    assert [f.shape for f in features] == [(4, 64)] * 5
    torch.testing.assert_close(features[3], method.base_encoder(views[3]))
    method.loss(features, None).backward()
    with pytest.raises(ConfigError, match="byol has no local crops; use swav or dino"):
        build_method(resolve({"data": {"local_crops": 3}, "method": {"name": "byol"}}), channels=1)


def test_prototypes_stand_still_at_first() -> None:
    method = tiny("swav", freeze_prototypes_iterations=2)
    assert isinstance(method, SwAV)
    for iteration in range(3):
        method.zero_grad()
        loss_of(method, two_views()).backward()
        method.before_update(iteration)
        assert (method.prototypes.weight.grad is None) == (iteration < 2)


def test_mocov2_against_its_queue() -> None:
    method = tiny("mocov2")
    assert isinstance(method, MoCoV2)
    views = two_views()
    queue = [row[:] for row in method.queue.tolist()]
    q = [unit(r) for r in method.projector(method.base_encoder(views[0])).tolist()]
    k = [unit(r) for r in method.momentum_projector(method.momentum_encoder(views[1])).tolist()]
    total = 0.0
    for row, key in zip(q, k, strict=True):
        logits = [dot(row, key) / 0.2] + [dot(row, negative) / 0.2 for negative in queue]
        total += -logits[0] + math.log(sum(math.exp(x) for x in logits))
    loss = loss_of(method, views)
    assert loss.item() == pytest.approx(total / 5, rel=1e-10)
    loss.backward()  # the queue has changed since: the gradient must not mind


def test_the_queue_is_a_ring() -> None:
    method = tiny("mocov2")
    assert isinstance(method, MoCoV2)
    before = method.queue.clone()
    keys = torch.arange(1.0, 5.0, dtype=torch.float64)[:, None].expand(4, 8)
    for _ in range(3):  # 12 keys into 10 places
        method.enqueue(keys)
    assert method.queue[:, 0].tolist() == [3, 4, 3, 4, 1, 2, 3, 4, 1, 2]
    assert method.queue_position.item() == 2
    assert not torch.equal(before, method.queue)


@pytest.mark.parametrize("arch", ["vit_nano", "resnet18"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_gives_every_trainable_parameter_a_gradient(name: str, arch: str) -> None:
    config = resolve({"model": {"arch": arch}, "method": {"name": name}})
    method = build_method(config, channels=1)
    assert isinstance(method, Method)
    loss_of(method, [torch.randn(4, 1, 16, 16) for _ in range(2)]).backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_key_that_is_not_finite_does_not_enter_the_queue() -> None:
    torch.manual_seed(0)
    method = build_method(resolve({"method": {"name": "mocov2", "queue_size": 8}}), channels=1)
    assert isinstance(method, MoCoV2)
    before = method.queue.clone()
    keys = torch.ones(3, 64)
    keys[1, 5] = float("nan")
    method.enqueue(keys)
    assert torch.equal(method.queue[[0, 2]], torch.ones(2, 64))
    assert torch.equal(method.queue[1], before[1])
    assert method.queue_position == 3
