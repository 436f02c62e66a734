"""Every kind of gradient against its formula in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stabilitylab.models.layers import Layer
from stabilitylab.recording import adam
from stabilitylab.recording.norms import Kinds, l2_and_largest, l2_norms
from stabilitylab.recording.recorder import Recorder
from tests.recording.test_recorder import MemorySink


def layers_of(*groups: Sequence[nn.Parameter]) -> list[Layer]:
    return [Layer(f"layer{i}", i, tuple(group)) for i, group in enumerate(groups)]


def parameter(gradient: Tensor) -> nn.Parameter:
    p = nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype))
    p.grad = gradient
    return p


def measured(layers: list[Layer], signals: tuple[str, ...] = ("grad_norm", "grad_max"), **options: Any) -> np.ndarray:
    """(signals, layers); NaN where not measured."""
    values, known = Recorder(layers, MemorySink(), signals=signals, **options).measure()
    return torch.where(known, values, torch.nan).numpy()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_in_any_precision(dtype: torch.dtype) -> None:
    """On any processor: a sum of a million equal squares in one go is off by 1e-3 on some."""
    gradients = [torch.full((1000, 1000), 100.0).to(dtype), torch.randn(7, 5).to(dtype)]
    norm, largest = measured(layers_of([parameter(gradients[0])], [parameter(gradients[1])]))
    np.testing.assert_allclose(norm, [g.double().norm() for g in gradients], rtol=1e-5)
    np.testing.assert_allclose(largest, [g.double().abs().max() for g in gradients], rtol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_of_any_size(dtype: torch.dtype, threads: int) -> None:
    """1e-5: the bound that `recording.norms._BLOCK` argues for is 7.6e-6."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in (100, 1_000, 4_097, 10_000, 16_384, 16_385, 600_001):
            for values in (torch.full((size,), 0.1), torch.randn(size), torch.full((size,), 3e4)):
                tensors = [values.to(dtype)] * 3 + [values.to(dtype)[::2]]
                exact = [t.double().norm() for t in tensors]
                kind = Kinds().of(tensors)[0]
                np.testing.assert_allclose(l2_norms(tensors, kind)[0], exact, rtol=1e-5)
                np.testing.assert_allclose(l2_and_largest(tensors, kind)[0], exact, rtol=1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_norms_of_two_hundred_million_entries(dtype: torch.dtype) -> None:
    tensor = torch.full((200_000_000,), 0.1).to(dtype)
    exact = float(tensor[0].double()) * 200_000_000**0.5
    kind = Kinds().of([tensor])[0]
    assert float(l2_norms([tensor], kind)) == pytest.approx(exact, rel=1e-5)
    assert float(l2_and_largest([tensor], kind)[0]) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e-24, 1e20, 1e30])
def test_norms_whose_squares_leave_float32(size: float) -> None:
    norm, largest = measured(layers_of([parameter(torch.full((50,), size)), parameter(torch.full((50,), size))]))
    assert norm[0] == pytest.approx(10 * size, rel=1e-5)
    assert largest[0] == pytest.approx(size, rel=1e-6)


def test_sparse_complex_empty_and_mixed_gradients() -> None:
    embedding = nn.Embedding(10, 4, sparse=True)
    (embedding(torch.tensor([1, 1, 3])) * torch.arange(1.0, 13).view(3, 4)).sum().backward()
    assert embedding.weight.grad is not None
    dense = embedding.weight.grad.to_dense().double()
    wave = torch.randn(6, dtype=torch.complex64)
    layers = layers_of(
        [embedding.weight], [parameter(wave)], [parameter(torch.zeros(0, 3))], [parameter(torch.ones(3).half())]
    )
    norm, largest, nonfinite = measured(layers, ("grad_norm", "grad_max", "nonfinite"))
    np.testing.assert_allclose(norm, [dense.norm(), wave.abs().double().norm(), 0, 3**0.5], rtol=1e-5)
    np.testing.assert_allclose(largest, [dense.abs().max(), wave.abs().max(), 0, 1], rtol=1e-5)
    assert nonfinite.tolist() == [0, 0, 0, 0]


def naive_rms(p: nn.Parameter, v: Tensor, t: int, beta2: float, eps: float, top: Tensor | None = None) -> Tensor:
    assert p.grad is not None
    square = p.grad.double() ** 2
    v = beta2 * v.double() + (1 - beta2) * square
    v = (v if top is None else torch.maximum(v, top.double())) / (1 - beta2**t)
    return square / v.clamp(min=eps**2)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"fused": True}, {"betas": (0.9, 0.95)}], ids=str)
def test_adam_rms_of_each_kind_of_adam(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, **options)
    beta2 = options.get("betas", (0.9, 0.999))[1]
    recorder = Recorder(layers_of(parameters), MemorySink(), signals=("adam_rms",), optimizer=optimizer)
    for t in range(1, 6):
        values = []
        for p in parameters:
            p.grad = torch.randn_like(p) * (10.0 if t == 2 else 0.1)
            state = optimizer.state.get(p) or {}
            v = state.get("exp_avg_sq", torch.zeros_like(p))
            values.append(naive_rms(p, v, t, beta2, 1e-8, state.get("max_exp_avg_sq")).flatten())
        expected = torch.cat(values).mean().sqrt().item()
        assert recorder.measure().values[0, 0].item() == pytest.approx(expected, rel=1e-4)
        scaled = [p.grad for p in parameters]
        for p in parameters:
            assert p.grad is not None
            p.grad = p.grad * 1024
        assert recorder.measure(grad_scale=1024.0).values[0, 0].item() == pytest.approx(expected, rel=1e-4)
        for p, gradient in zip(parameters, scaled, strict=True):
            p.grad = gradient
        optimizer.step()


def test_adam_rms_is_unknown_where_the_optimizer_keeps_no_second_moment() -> None:
    mine, other = parameter(torch.ones(3)), parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([mine])
    optimizer.step()
    found = measured(layers_of([mine], [other]), ("adam_rms",), optimizer=optimizer)
    assert found[0, 0] == pytest.approx(1, rel=1e-3)
    assert np.isnan(found[0, 1])


@pytest.mark.filterwarnings("ignore:adam_rms was never measured")
def test_adam_rms_of_adafactor_is_missing_and_says_why_once() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.Adafactor(model.parameters())
    layers, sink = layers_of(list(model.parameters())), MemorySink()
    recorder = Recorder(layers, sink, signals=("grad_norm", "adam_rms"), optimizer=optimizer, flush_every=5)
    for i in range(20):
        model(torch.randn(2, 4)).square().mean().backward()
        recorder.step(i)
        recorder.flush_if_due()
        optimizer.step()
        optimizer.zero_grad()
    recorder.close()
    assert np.ma.getmaskarray(sink.column("layer_stats", "adam_rms")).all()
    reasons = [detail for _, kind, detail in sink.events if kind == "not-measured"]
    assert len(reasons) == 1
    assert "Adafactor keeps the second moment factored by rows and columns" in reasons[0]


def test_only_the_parameters_of_the_optimizer_that_steps() -> None:
    d, g = parameter(torch.ones(3)), parameter(torch.ones(4))
    recorder = Recorder(layers_of([d], [g]), MemorySink())
    norms, known = recorder.measure(optimizer=torch.optim.SGD([g], lr=0.1))
    assert known[0].tolist() == [False, True]
    assert norms[0, 1] == 2


def test_the_share_of_entries_that_are_not_finite() -> None:
    bad = torch.ones(8)
    bad[1], bad[5] = float("nan"), float("-inf")
    found = measured(layers_of([parameter(bad), parameter(torch.ones(2))], [parameter(torch.ones(4))]), ("nonfinite",))
    np.testing.assert_allclose(found[0], [0.2, 0])


def test_what_is_kept_for_sets_of_parameters_is_bounded() -> None:
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(8)]
    recorder = Recorder(layers_of(*[[p] for p in parameters]), MemorySink())
    for chosen in range(1, 256):
        for i, p in enumerate(parameters):
            p.grad = torch.ones(2) if chosen >> i & 1 else None
        assert recorder.measure().measured[0].tolist() == [bool(chosen >> i & 1) for i in range(8)]
    assert len(recorder._index._kept) <= 16


def test_gradients_that_change_in_shape_layout_and_precision_between_steps() -> None:
    torch.manual_seed(0)
    around = 1 << 14  # below, gradients of one shape are read together, up to 16 of this size at once
    shapes = [(around,)] * 20 + [(around + 1,)] * 2 + [(3, 5)] * 9 + [(5, 3)] * 4 + [(0, 4)] + [()]
    parameters = [nn.Parameter(torch.empty(0)) for _ in shapes]
    recorder = Recorder(layers_of(*[[p] for p in parameters]), MemorySink())
    doubled = {"dtype": torch.float64}
    for order, kind in ((1, {}), (1, {}), (-1, {}), (-1, doubled), (1, doubled), (1, {})):
        for i, (p, shape) in enumerate(zip(parameters, shapes[::order], strict=True)):
            p.grad = None
            p.data = torch.zeros(shape, **(kind if i % 2 else {}))
            p.grad = torch.randn_like(p)
            if p.ndim == 2 and i % 3 == 0:
                p.grad = torch.randn(shape[::-1], dtype=p.dtype).T  # not contiguous
        norm, largest = recorder.measure().values.numpy()
        exact = [p.grad.double().flatten() for p in parameters if p.grad is not None]
        np.testing.assert_allclose(norm, [g.norm() for g in exact], rtol=1e-5)
        np.testing.assert_allclose(largest, [g.abs().max() if len(g) else 0 for g in exact], rtol=1e-6)


def test_adam_rms_where_the_step_count_is_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As fused and capturable optimizers keep it on CUDA: nothing asks for its value, the result is the same."""
    p = nn.Parameter(torch.randn(4, 3))
    optimizer = torch.optim.AdamW([p], betas=(torch.tensor(0.9), torch.tensor(0.95)), lr=1e-2)
    recorder = Recorder(layers_of([p]), MemorySink(), signals=("adam_rms",), optimizer=optimizer)
    for _ in range(3):
        p.grad = torch.randn_like(p)
        plain = recorder.measure()
        with monkeypatch.context() as patch:
            patch.setattr(adam, "_known", lambda number: number)
            torch.testing.assert_close(recorder.measure(), plain)
        optimizer.step()


@pytest.mark.parametrize("odd", [1.0, 1e-30, 1e25, float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_norms_that_adam_rms_reads_in_passing(dtype: torch.dtype, odd: float) -> None:
    """adam_rms reads the gradients anyway and gives their norms. They equal those of a recorder without it."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(*shape).to(dtype)) for shape in [(300, 300), (7,), (1,), (0, 3), (5, 5)]]
    optimizer = torch.optim.AdamW(parameters)
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer.step()
    for p in parameters:
        p.grad = torch.randn_like(p) * 1e-2
        p.grad.flatten()[-1:] *= odd
    layers = layers_of(parameters[:1], parameters[1:3], parameters[3:])
    norm, largest = measured(layers, ("grad_norm", "grad_max"))
    values = measured(layers, ("grad_norm", "grad_max", "nonfinite", "adam_rms"), optimizer=optimizer)
    np.testing.assert_allclose(values[0], norm, rtol=1e-5)
    np.testing.assert_allclose(values[1], largest, rtol=1e-6)
    assert (values[2] > 0).tolist() == [not np.isfinite(odd)] * 3


@pytest.mark.gpu
def test_gradients_on_two_devices_without_a_wait() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4).to(device) for device in ("cuda", "cpu")]
    optimizer = torch.optim.AdamW([p for layer in layers for p in layer.parameters()])
    names = ("grad_norm", "grad_max", "weight_norm", "nonfinite", "adam_rms")
    recorder = Recorder(
        layers_of(*[list(layer.parameters()) for layer in layers]), MemorySink(), signals=names, optimizer=optimizer
    )
    for layer in layers:
        for p in layer.parameters():
            p.grad = torch.randn_like(p)
    expected = [torch.cat([p.grad.flatten().cpu() for p in layer.parameters()]).norm() for layer in layers]
    np.testing.assert_allclose(recorder.measure().values[0].cpu(), expected, rtol=1e-5)
    alone = Recorder(layers_of(list(layers[0].parameters())), MemorySink(), signals=names, optimizer=optimizer)
    optimizer.step()
    alone.measure()  # makes what is constant
    torch.cuda.set_sync_debug_mode("error")
    try:
        alone.step(0, loss=torch.ones((), device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
