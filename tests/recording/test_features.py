"""Feature statistics against naive loops and cases whose answer is known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import stabilitylab
from stabilitylab.errors import RecordError
from stabilitylab.recording.features import feature_statistics
from stabilitylab.store.reader import open_run


def test_against_naive_loops() -> None:
    torch.manual_seed(0)
    z, other = torch.randn(40, 6) + 0.5, torch.randn(40, 6)
    found = feature_statistics(z, other)
    unit = [[float(v) / math.sqrt(sum(float(w) ** 2 for w in row)) for v in row] for row in z]
    also = [[float(v) / math.sqrt(sum(float(w) ** 2 for w in row)) for v in row] for row in other]
    spreads = []
    for d in range(6):
        mean = sum(row[d] for row in unit) / 40
        spreads.append(math.sqrt(sum((row[d] - mean) ** 2 for row in unit) / 40))
    assert found["feature_spread"] == pytest.approx(sum(spreads) / 6, rel=1e-4)

    def apart(x: list[float], y: list[float]) -> float:
        return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))

    pairs = [math.exp(-2 * apart(unit[i], unit[j])) for i in range(40) for j in range(i)]
    assert found["feature_uniformity"] == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-4)
    alignment = sum(apart(x, y) for x, y in zip(unit, also, strict=True)) / 40
    assert found["feature_alignment"] == pytest.approx(alignment, rel=1e-4)
    eigenvalues = torch.linalg.eigvalsh(z.double().T @ z.double()).clamp(min=0).sqrt()
    share = eigenvalues / eigenvalues.sum()
    assert found["feature_rank"] == pytest.approx(math.exp(-sum(float(p * p.log()) for p in share)), rel=1e-4)
    assert found["feature_dim"] == 6


def test_known_answers() -> None:
    torch.manual_seed(1)
    isotropic = feature_statistics(torch.randn(512, 64))
    assert isotropic["feature_spread"] == pytest.approx(1 / 8, rel=0.02)
    assert isotropic["feature_rank"] > 55
    constant = feature_statistics(torch.ones(100, 64), torch.ones(100, 64))
    assert constant["feature_spread"] == pytest.approx(0, abs=1e-6)
    assert constant["feature_rank"] == pytest.approx(1)
    assert constant["feature_alignment"] == 0
    assert constant["feature_uniformity"] == pytest.approx(0, abs=1e-6)
    broken = feature_statistics(torch.full((4, 3), math.nan))
    assert math.isnan(broken["feature_rank"])
    assert broken["feature_dim"] == 3


def test_any_loop_records_them(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    with stabilitylab.record(model, run="r", runs_dir=tmp_path) as rec:
        model(torch.randn(8, 4)).square().sum().backward()
        rec.step(loss=1.0)
        found = rec.features(model(torch.randn(8, 4)))
        with pytest.raises(RecordError, match=r"features must have shape \(N, D\)"):
            rec.features(torch.randn(8))
    with open_run(tmp_path / "r") as reader:
        rows = reader.query("SELECT name, value FROM scalars WHERE iteration = 1").fetchall()
    assert {name: pytest.approx(value, rel=1e-5) for name, value in rows} == found
