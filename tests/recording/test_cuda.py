"""The recorder on a GPU, against float64 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stabilitylab
from stabilitylab.recording.norms import Kinds, count_nonfinite, l2_and_largest
from stabilitylab.recording.recorder import Recorder
from tests.recording.test_recorder import MemorySink
from tests.recording.test_signals import layers_of

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
SIX = ("grad_norm", "grad_max", "weight_norm", "nonfinite", "adam_rms", "update_ratio")


@pytest.fixture
def no_waits() -> Iterator[Any]:
    """A function that makes any wait for the device an error."""
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_and_largest_entries(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(), (1,), (1000,), (0, 3), (768, 3072), (30_000_001,)]
    tensors = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    found = Kinds().measure(l2_and_largest, [t.to(DEVICE) for t in tensors]).cpu()
    exact = [t.double() for t in tensors]
    np.testing.assert_allclose(found[0], [t.norm() for t in exact], rtol=2e-7)
    np.testing.assert_allclose(found[1], [t.abs().max() if t.numel() else 0.0 for t in exact], rtol=1e-7)


def test_tiny_huge_and_odd_entries() -> None:
    tensors = [torch.full((1000,), value, device=DEVICE) for value in (1e-30, 1e30, float("inf"), float("nan"), 0.0)]
    tensors[0][1] = float("nan")
    norms, largest = Kinds().measure(l2_and_largest, tensors).cpu()
    assert norms[1] == pytest.approx(1e30 * 1000**0.5, rel=1e-6)
    assert [torch.isfinite(x).item() for x in norms] == [False, True, False, False, True]
    assert [torch.isfinite(x).item() for x in largest] == [False, True, False, False, True]
    assert Kinds().measure(count_nonfinite, tensors).tolist() == [[1.0, 0.0, 1000.0, 1000.0, 0.0]]


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 10))


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
    "amsgrad": {"amsgrad": True},
}


def trained(device: torch.device, dtype: torch.dtype, options: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """Every recorded value of ten updates of AdamW."""
    model = net().to(device, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, **options)
    generator = torch.Generator().manual_seed(1)
    with stabilitylab.record(
        model, optimizer, run="run", runs_dir=folder, signals=(*SIX, "grad_cosine"), measure="step", granularity="param"
    ) as rec:
        for _ in range(10):
            x = torch.randn(64, 40, generator=generator, dtype=torch.float64).to(device, dtype)
            loss = model(x).square().mean()
            loss.backward()
            rec.step(loss=loss)
            optimizer.step()
            optimizer.zero_grad()
    run = stabilitylab.open_run(folder / "run")
    return {name: run.signal(name).to_numpy() for name in (*SIX, "grad_cosine")}


@pytest.mark.parametrize("options", OPTIMIZERS)
def test_six_signals_over_ten_updates(options: str, tmp_path: Path) -> None:
    plain = {"amsgrad": True} if options == "amsgrad" else {}
    expected = trained(torch.device("cpu"), torch.float64, plain, tmp_path / "cpu")
    found = trained(DEVICE, torch.float64, OPTIMIZERS[options], tmp_path / "cuda")
    rtol = 1e-4 if options == "capturable" else 1e-5  # its bias corrections are float32
    for name in (*SIX, "grad_cosine"):
        assert np.isfinite(expected[name]).any(), name
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol, atol=1e-9, err_msg=name)


def test_a_step_with_every_signal_of_gradients_never_waits(no_waits: Any) -> None:
    model = net().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    names = (*SIX, "grad_cosine")
    recorder = Recorder(
        layers_of(*[[p] for p in model.parameters()]), MemorySink(), model=model, signals=names, optimizer=optimizer
    )

    def update(iteration: int) -> None:
        loss = model(torch.randn(64, 40, device=DEVICE)).square().mean()
        loss.backward()
        recorder.step(iteration, loss=loss.detach())
        optimizer.step()
        optimizer.zero_grad()

    for iteration in range(3):  # makes what is constant
        update(iteration)
    no_waits("error")
    for iteration in range(3, 10):
        update(iteration)


def test_the_module_of_another_device_is_measured_where_it_is(tmp_path: Path) -> None:
    """A model split over the GPU and the CPU."""
    first, second = nn.Linear(8, 16).to(DEVICE), nn.Linear(16, 4)
    model = nn.ModuleList([first, second])
    optimizer = torch.optim.AdamW(model.parameters())
    truth: list[Sequence[Tensor]] = []
    with stabilitylab.record(model, optimizer, run="run", runs_dir=tmp_path, granularity="param") as rec:
        for _ in range(3):
            loss = second(first(torch.randn(5, 8, device=DEVICE)).cpu()).square().mean()
            loss.backward()
            truth.append([p.grad.double().norm().cpu() for p in model.parameters() if p.grad is not None])
            rec.step(loss=loss)
            optimizer.step()
            optimizer.zero_grad()
    found = stabilitylab.open_run(tmp_path / "run").signal("grad_norm").to_numpy()
    np.testing.assert_allclose(found, truth, rtol=1e-6)
