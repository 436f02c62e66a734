"""Gradient direction and attention entropy against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

import stabilitylab
from stabilitylab.recording import direction
from stabilitylab.store.reader import open_run


def series(root: Path, signal: str) -> dict[int, np.ndarray]:
    with open_run(root / "r") as reader:
        return {layer: value for layer, (_, value) in reader.layer_series(signal).items()}


def test_inner_products_in_few_calls() -> None:
    """What a GPU computes, in double precision: for equal, opposite, independent and zero gradients."""
    torch.manual_seed(0)
    base = [torch.randn(n, dtype=torch.float64) for n in (1, 5, 1000, 30_000)]
    now = [*base, *base, *base, torch.zeros(7, dtype=torch.float64)]
    last = [*(3 * t for t in base), *(-t for t in base), *(torch.randn_like(t) for t in base), torch.ones(7).double()]
    own, other = (torch.stack([t.norm() for t in ts]).clamp(min=1e-38) for ts in (now, last))
    exact = [float((a / m) @ (b / n)) for a, b, m, n in zip(now, last, own, other, strict=True)]
    found = direction._in_few_calls(now, last, own.float(), other.float())
    np.testing.assert_allclose(found, exact, atol=3e-7)


def test_the_cosine_to_the_previous_gradient(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    expected: list[list[float]] = []
    before: list[Tensor] | None = None
    with stabilitylab.record(model, run="r", runs_dir=tmp_path, signals=["grad_norm", "grad_cosine"]) as rec:
        for i in range(4):
            model.zero_grad()
            (model(torch.randn(5, 3)).square().sum() * (1e-3 if i == 2 else 1.0)).backward()
            now = [torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in model]
            if before is not None:
                expected.append([float(F.cosine_similarity(a, b, dim=0)) for a, b in zip(now, before, strict=True)])
            before = [g.clone() for g in now]
            rec.step()
    found = series(tmp_path, "grad_cosine")
    for layer in range(2):
        np.testing.assert_allclose(found[layer], [row[layer] for row in expected], rtol=1e-4)


def test_attention_entropy_of_the_head_that_has_least(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(Attention(8, num_heads=2, qkv_bias=True))
    x = torch.randn(6, 5, 8)
    with stabilitylab.record(
        model, run="r", runs_dir=tmp_path, signals=["grad_norm", "attention_entropy"], granularity="block"
    ) as rec:
        model(x).sum().backward()
        rec.step()
    attention = model[0]
    qkv = attention.qkv(x)
    heads = []
    for head in range(2):
        total = 0.0
        for n in range(6):
            q, k = (qkv[n, :, part * 8 + head * 4 : part * 8 + head * 4 + 4] for part in (0, 1))
            weights = torch.softmax(q @ k.T * attention.scale, dim=1)
            total += float(-(weights * weights.log()).sum(dim=1).mean()) / 6
        heads.append(total)
    (value,) = series(tmp_path, "attention_entropy").values()
    assert value[0] == pytest.approx(min(heads), rel=1e-4)
