"""The CUDA branches without a GPU: under torch's FakeTensorMode tensors have a device and a shape, and no values. It
raises where devices mix, and where a value is asked for, which on a GPU would wait for it. Backward does not work
there, so gradients are set by hand. What it cannot show is whether the numbers are right: the tests marked ``gpu`` do.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stabilitylab.config import OPTIMIZERS, resolve
from stabilitylab.config.sections import OptimConfig
from stabilitylab.data.views import Draws, View, augment
from stabilitylab.methods import METHODS
from stabilitylab.models.layers import Layer
from stabilitylab.recording import measurement
from stabilitylab.recording.norms import Kinds, count_nonfinite, l2_and_largest, l2_norms
from stabilitylab.recording.recorder import Recorder
from stabilitylab.recording.transfer import Transfer
from stabilitylab.train.evaluate import knn_predict
from stabilitylab.train.optim import build_optimizer
from tests.recording.test_recorder import MemorySink

CUDA = torch.device("cuda", 0)
SIX = ("grad_norm", "grad_max", "weight_norm", "nonfinite", "adam_rms", "update_ratio")


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        yield mode


def on_gpu(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=CUDA)


def with_gradients(module: nn.Module) -> list[nn.Parameter]:
    parameters = list(module.parameters())
    for p in parameters:
        p.grad = torch.empty_like(p)
    return parameters


def test_a_wait_and_a_mix_of_devices_would_be_seen(fake: FakeTensorMode) -> None:
    with pytest.raises(DataDependentOutputException):
        on_gpu(3).sum().item()
    with pytest.raises(Exception, match="device"):
        on_gpu(3) + torch.ones(3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms(fake: FakeTensorMode, dtype: torch.dtype) -> None:
    tensors = [on_gpu(300, 100, dtype=dtype), on_gpu(5, dtype=dtype), on_gpu(0, 4, dtype=dtype), on_gpu(dtype=dtype)]
    for compute, rows in ((l2_norms, 1), (l2_and_largest, 2), (count_nonfinite, 1)):
        found = Kinds().measure(compute, tensors)
        assert (found.shape, found.device, found.dtype) == ((rows, 4), CUDA, torch.float32)


@pytest.mark.parametrize("fused", [True, False])
def test_every_signal_of_gradients_and_weights(fake: FakeTensorMode, fused: bool) -> None:
    """grad_norm, grad_max, weight_norm, nonfinite, adam_rms and update_ratio, with a loss scale on the device."""
    modules = [nn.Linear(8, 8, device=CUDA) for _ in range(3)]
    layers = [Layer(f"layer{i}", i, tuple(with_gradients(module))) for i, module in enumerate(modules)]
    parameters = [p for layer in layers for p in layer.parameters]
    optimizer = torch.optim.AdamW(parameters, fused=False)
    for p in parameters:
        step = torch.empty((), device=CUDA) if fused else 1.0
        optimizer.state[p] = {"step": step, "exp_avg": torch.empty_like(p), "exp_avg_sq": torch.empty_like(p)}
    recorder = Recorder(layers, MemorySink(), signals=SIX, optimizer=optimizer)
    found = recorder.measure(grad_scale=torch.empty((), device=CUDA))
    assert found.values.device == found.measured.device == CUDA
    assert found.values.shape[1] == 3


class CountedCalls(TorchDispatchMode):
    """Counts operations. A list of tensors in one operation counts as one."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace == "aten"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("signals", "most"), [(SIX[:2], 30), (SIX, 90), (("grad_cosine",), 60)])
@pytest.mark.parametrize("on_device", [True, False])
def test_the_number_of_calls_does_not_grow_with_the_model(
    signals: tuple[str, ...], most: int, on_device: bool, monkeypatch: pytest.MonkeyPatch, fake: FakeTensorMode
) -> None:
    """On a GPU a call costs more than its kernels: one for each of 152 tensors made six signals cost as much as a step
    of ViT-Tiny. ``on_device``: whether the optimizer counts its steps there."""
    monkeypatch.setattr(measurement, "_PLAIN", (FakeTensor,))
    monkeypatch.setattr(measurement, "_entries", list)
    counts = []
    for depth in (5, 50):
        modules = [nn.Linear(8, 8, device=CUDA) for _ in range(depth)]
        layers = [Layer(f"layer{i}", i, tuple(with_gradients(module))) for i, module in enumerate(modules)]
        optimizer = torch.optim.AdamW([p for layer in layers for p in layer.parameters])
        for p in optimizer.param_groups[0]["params"]:
            step = torch.empty((), device=CUDA) if on_device else 1.0  # a fake tensor on the CPU has no value
            optimizer.state[p] = {"step": step, "exp_avg": torch.empty_like(p), "exp_avg_sq": torch.empty_like(p)}
        recorder = Recorder(layers, MemorySink(), signals=signals, optimizer=optimizer)
        for iteration in range(3):  # what is constant is made first
            with CountedCalls() as calls:
                recorder.step(iteration)
        counts.append(calls.count)
    assert counts[0] == counts[1] < most, counts


@pytest.mark.parametrize("name", sorted(METHODS))
def test_losses_and_the_momentum_encoder(name: str) -> None:
    """Each method's forward pass, loss and EMA. It is built on the CPU and moved, as the trainer does."""
    module, _, kind = METHODS[name].partition(":")
    method = getattr(import_module(module), kind)(Encoder(), resolve({"method": {"name": name}}).method, vit=True)
    with FakeTensorMode(allow_non_fake_inputs=False):
        for part in method.modules():
            for held in (part._parameters, part._buffers):
                for key, tensor in held.items():
                    if tensor is not None:
                        moved = torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)
                        held[key] = nn.Parameter(moved, tensor.requires_grad) if held is part._parameters else moved
        views = [on_gpu(8, 3, 4, 4), on_gpu(8, 3, 4, 4)]
        features = method.encode(views)
        averaged = bool(getattr(method, "_averaged", ()))
        momentum = method.encode_momentum(views) if averaged else None
        assert method.loss(features, momentum).device == CUDA
        if averaged:
            method.update_momentum_encoder(0.99)


class Encoder(nn.Module):
    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Sequential(nn.Flatten(), nn.Linear(48, 6))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.flat(images)
        return out


def test_knn(fake: FakeTensorMode) -> None:
    labels = torch.empty(50, dtype=torch.int64, device=CUDA)
    predicted = knn_predict(on_gpu(50, 6), labels, on_gpu(20, 6), k=5, temperature=0.1, num_classes=3)
    assert (predicted.shape, predicted.device) == ((20,), CUDA)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_wait_for_nothing(fake: FakeTensorMode, name: str) -> None:
    with CUDA:
        parameters = with_gradients(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)))
        optimizer = build_optimizer(parameters, OptimConfig(name=name))
        for _ in range(2):
            optimizer.step()


class FixedDraws(Draws):
    """Permutations have values, which fake tensors do not."""

    def order(self, n: int) -> list[int]:
        return list(range(n))[::-1]


def test_views(fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of an augmentation; what is drawn on the CPU crosses over through pinned memory."""
    crossings: list[int] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: crossings.append(1) or self)
    view = View(blur_p=0.5, solarize_p=0.5)
    images = augment(on_gpu(4, 3, 20, 20), view, 16, FixedDraws(torch.Generator()))
    assert (images.shape, images.device) == ((4, 3, 16, 16), CUDA)
    assert crossings


def test_transfer_to_the_host(fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy for all tensors of the device, into pinned memory, with an event to ask later."""
    recorded: list[object] = []

    class Event:
        def record(self, stream: object) -> None:
            recorded.append(stream)

        def query(self) -> bool:
            return False

    real = torch.empty
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **options: real(*shape, **options))
    transfer = Transfer([on_gpu(3), on_gpu(2, 2, dtype=torch.bfloat16), on_gpu()])
    assert recorded == ["stream of cuda:0"]
    assert not transfer.ready()
