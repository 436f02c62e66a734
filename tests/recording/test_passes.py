"""What is read in parts on the CPU equals what whole tensors give in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stabilitylab.models.layers import Layer
from stabilitylab.recording.passes import PART, Snapshot
from stabilitylab.recording.recorder import Recorder
from tests.recording.test_recorder import MemorySink

SHAPES = [(3,), (PART + 1,), (128, 129), (2, 2), (0,), (PART * 2,), (1,)]


def norms(tensors: list[Tensor]) -> Tensor:
    return torch.tensor([float(t.double().norm()) for t in tensors])


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_snapshot_tells_what_changed_and_moves_on(scale: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(shape, dtype=dtype) * scale for shape in SHAPES]
    copy = Snapshot(tensors)
    for _ in range(2):
        before = [t.clone() for t in tensors]
        for t in tensors:
            t += 1e-3 * scale * torch.randn_like(t)
        changed, now = copy.advance(tensors, norms)
        expected = norms([a - b for a, b in zip(tensors, before, strict=True)])
        torch.testing.assert_close(changed.float(), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(now.float(), norms(tensors), rtol=1e-5, atol=0)
    assert not copy.advance(tensors, norms)[0].any()


def test_a_snapshot_knows_other_shapes() -> None:
    copy = Snapshot([torch.zeros(3), torch.zeros(PART)])
    assert copy.fits([torch.ones(3), torch.ones(PART)])
    assert not copy.fits([torch.ones(4), torch.ones(PART)])
    assert not copy.fits([torch.ones(3), torch.ones(PART, dtype=torch.float64)])


def weights_changed_between(
    model: nn.Module, optimizer: torch.optim.Optimizer, every: int
) -> tuple[MemorySink, list[float], list[float]]:
    """update_ratio and weight_norm as recorded, and as they were; the weights are also changed by hand in between."""
    recorder = Recorder(
        [Layer("all", 0, tuple(model.parameters()))],
        sink := MemorySink(),
        signals=("weight_norm", "update_ratio"),
        model=model,
        optimizer=optimizer,
        every=every,
    )
    ratios: list[float] = []
    weights: list[float] = []
    for i in range(6):
        with torch.no_grad():
            model.weight.data.mul_(1.1)  # after the last update, before the next step is recorded
        model(torch.randn(4, model.in_features)).square().sum().backward()
        before = model.weight.detach().double().clone()
        recorder.step(i)
        optimizer.step()
        optimizer.zero_grad()
        if i % every == 0:
            weights.append(float(before.norm()))
            ratios.append(float((model.weight.detach().double() - before).norm() / before.norm()))
        if i % every == 0:
            recorder.settle()
    recorder.close()
    return sink, weights, ratios


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("size", [3, 300])
def test_the_copy_is_of_the_weights_before_the_update(size: int, every: int) -> None:
    torch.manual_seed(0)
    model = nn.Linear(size, size, bias=False)
    sink, weights, ratios = weights_changed_between(model, torch.optim.AdamW(model.parameters(), lr=1e-3), every)
    torch.testing.assert_close(
        torch.tensor(sink.column("layer_stats", "weight_norm").tolist()), torch.tensor(weights), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        torch.tensor(sink.column("layer_stats", "update_ratio").tolist()), torch.tensor(ratios), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("maker", [torch.optim.AdamW, torch.optim.NAdam, torch.optim.Adam])
def test_adam_rms_of_large_and_small_parameters(maker: type, amsgrad: bool) -> None:
    if amsgrad and maker is torch.optim.NAdam:
        pytest.skip("NAdam has no amsgrad")
    torch.manual_seed(0)
    model = nn.Linear(300, 300)
    options = {"amsgrad": True} if amsgrad else {}
    optimizer = maker(model.parameters(), lr=1e-3, **options)
    late = nn.Parameter(torch.zeros(300))  # its first gradient comes later: another number of steps
    optimizer.add_param_group({"params": [late]})
    model.register_parameter("late", late)
    recorder = Recorder(
        [Layer("all", 0, tuple(model.parameters()))],
        sink := MemorySink(),
        signals=("adam_rms",),
        model=model,
        optimizer=optimizer,
    )
    v = {p: torch.zeros(p.shape, dtype=torch.float64) for p in model.parameters()}
    most, steps = {p: x.clone() for p, x in v.items()}, dict.fromkeys(v, 0)
    expected = []
    for i in range(8):
        out = model(torch.randn(4, 300) * 10 ** (-i / 2))
        (out if i < 3 else out * late.exp()).square().mean().backward()
        total, count = 0.0, 0
        for p in v:
            if p.grad is not None:
                g = p.grad.double()
                steps[p] += 1
                v[p] = 0.999 * v[p] + 0.001 * g**2
                most[p] = torch.maximum(most[p], v[p])
                used = (most[p] if amsgrad else v[p]) / (1 - 0.999 ** steps[p])
                total, count = total + float((g**2 / used.clamp(min=1e-16)).sum()), count + p.numel()
        expected.append((total / count) ** 0.5)
        recorder.step(i)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    recorder.close()
    rows = sink.column("layer_stats", "adam_rms")
    assert len(rows) == 8
    torch.testing.assert_close(torch.tensor(rows.tolist()), torch.tensor(expected), rtol=1e-4, atol=0)
