"""MoCo v3 against the paper's Algorithm 1, written out as plain loops in float64."""

from __future__ import annotations

import math

import pytest
import torch

from stabilitylab.config import MethodConfig, resolve
from stabilitylab.methods import build_method
from stabilitylab.methods.base import Method, encode
from stabilitylab.methods.mocov3 import contrastive


def naive_ctr(q: list[list[float]], k: list[list[float]], tau: float) -> float:
    """Algorithm 1's ``ctr``, one number at a time."""

    def unit(row: list[float]) -> list[float]:
        length = math.sqrt(sum(x * x for x in row))
        return [x / length for x in row]

    q, k = [unit(row) for row in q], [unit(row) for row in k]
    total = 0.0
    for i, row in enumerate(q):
        logits = [sum(a * b for a, b in zip(row, key, strict=True)) / tau for key in k]
        total += -logits[i] + math.log(sum(math.exp(x) for x in logits))
    return 2 * tau * total / len(q)


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_the_contrastive_loss_equals_plain_loops(tau: float) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 7, 5, dtype=torch.float64)
    assert contrastive(q, k, tau).item() == pytest.approx(naive_ctr(q.tolist(), k.tolist(), tau), rel=1e-12)


def test_chance_loss_is_four_tau_log_n() -> None:
    """PAPER: random embeddings of high dimension give 2 x 2 tau ln N."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 64, 4096)
    assert 2 * contrastive(q, k, 0.2).item() == pytest.approx(4 * 0.2 * math.log(64), rel=0.01)


def tiny_method(**method: object) -> Method:
    config = resolve({"model": {"embed_dim": 16, "depth": 2}, "method": {"hidden_dim": 24, "out_dim": 8, **method}})
    torch.manual_seed(0)
    built = build_method(config, channels=1)
    assert isinstance(built, Method)
    return built.double()


def test_the_loss_is_symmetrised_and_keys_take_no_gradient() -> None:
    method = tiny_method()
    views = list(torch.randn(2, 6, 1, 16, 16, dtype=torch.float64))
    loss = method.loss(method.encode(views), method.encode_momentum(views))

    # The same, view by view, from the parts.
    q1, q2 = (method.predictor(method.projector(method.base_encoder(x))) for x in views)
    with torch.no_grad():
        k1, k2 = (method.momentum_projector(method.momentum_encoder(x)) for x in views)
    expected = naive_ctr(q1.tolist(), k2.tolist(), 0.2) + naive_ctr(q2.tolist(), k1.tolist(), 0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-10)

    loss.backward()
    assert all(p.grad is None for name, p in method.named_parameters() if name.startswith("momentum_"))
    trainable = [p for name, p in method.named_parameters() if p.requires_grad]
    assert trainable
    assert all(p.grad is not None for p in trainable)


def test_ema_is_over_parameters_and_not_over_buffers() -> None:
    method = tiny_method()
    torch.manual_seed(1)
    for p in method.base_encoder.parameters():
        p.data.add_(torch.randn_like(p))
    before = [p.clone() for p in method.momentum_encoder.parameters()]
    buffers = [b.clone() for b in method.momentum_projector.buffers()]
    method.update_momentum_encoder(0.9)
    online = method.base_encoder.parameters()
    for old, new, p in zip(before, method.momentum_encoder.parameters(), online, strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * p, rtol=1e-12, atol=0)
    for old, new in zip(buffers, method.momentum_projector.buffers(), strict=True):
        assert torch.equal(old, new)


def test_ema_of_equal_values_is_bit_identical() -> None:
    """A frozen projection and its momentum copy stay the same to the bit."""
    method = tiny_method().float()
    before = [p.clone() for p in method.momentum_encoder.parameters()]
    for momentum in (0.99, 0.9937, 0.999999):
        method.update_momentum_encoder(momentum)
    assert all(map(torch.equal, before, method.momentum_encoder.parameters()))


def test_heads_are_three_plus_two_layers_with_bn_after_each() -> None:
    method = tiny_method()
    kinds = [type(m).__name__ for m in method.projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert [type(m).__name__ for m in method.predictor] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    for head in (method.projector, method.predictor):
        assert head[-1].affine is False
        assert all(m.bias is None for m in head if isinstance(m, torch.nn.Linear))


def test_without_predictor_and_without_bn() -> None:
    method = tiny_method(predictor=False, head_bn=False)
    assert isinstance(method.predictor, torch.nn.Identity)
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in method.projector)


def test_views_in_one_batch_are_the_same_mathematics() -> None:
    method = tiny_method()
    views = list(torch.randn(2, 5, 1, 16, 16, dtype=torch.float64))
    together = encode(method.base_encoder, views)
    for one, view in zip(together, views, strict=True):
        torch.testing.assert_close(one, method.base_encoder(view), rtol=1e-10, atol=1e-12)


def test_a_backbone_with_bn_sees_the_views_apart() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(4))
    views = [torch.randn(8, 1, 2, 2), torch.randn(8, 1, 2, 2) * 5 + 3]
    for out in encode(net, views):
        torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)


def test_defaults_are_the_papers() -> None:
    config = MethodConfig()
    assert (config.temperature, config.ema_momentum, config.ema_schedule, config.predictor) == (
        0.2,
        0.99,
        "cosine",
        True,
    )
