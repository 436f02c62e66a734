"""The memory layout of convolutional encoders on CUDA (no GPU is needed), and where compiled code is kept."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from stabilitylab.config import resolve
from stabilitylab.methods import build_method
from stabilitylab.methods.base import Method
from stabilitylab.train import device
from stabilitylab.train.device import prepare_convolutions

CUDA = torch.device("cuda")
FUSED = ("flash", "mem_efficient", "cudnn")


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """torch's settings of the process, which each test leaves as they are."""
    backends, filled = torch.backends, torch.utils.deterministic.fill_uninitialized_memory
    before = backends.cudnn.benchmark
    fused = {name: getattr(backends.cuda, f"{name}_sdp_enabled")() for name in FUSED}
    backends.cudnn.benchmark = False
    yield
    backends.cudnn.benchmark = before
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled
    for name, enabled in fused.items():
        getattr(backends.cuda, f"enable_{name}_sdp")(enabled)


def method(arch: str) -> Method:
    torch.manual_seed(0)
    built = build_method(resolve({"method": {"name": "vicreg"}, "model": {"arch": arch, "img_size": 8}}), channels=1)
    assert isinstance(built, Method)
    return built.double()


def test_a_resnet_is_stored_channels_last_and_computes_the_same() -> None:
    plain = method("resnet18")
    fast = copy.deepcopy(plain)
    prepare_convolutions(fast, CUDA)
    assert torch.backends.cudnn.benchmark
    inner = [p for p in fast.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert inner
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in inner)
    views = list(torch.rand(2, 6, 1, 8, 8, dtype=torch.float64))
    losses = []
    for each in (plain, fast):
        loss = each.loss(each.encode(views), None)
        loss.backward()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize(("arch", "device"), [("vit_nano", CUDA), ("resnet18", torch.device("cpu"))])
def test_other_encoders_and_devices_are_left_as_they_are(arch: str, device: torch.device) -> None:
    left = method(arch)
    prepare_convolutions(left, device)
    assert not torch.backends.cudnn.benchmark
    assert all(p.is_contiguous() for p in left.parameters())


def test_deterministic_kernels_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    device.use_deterministic_kernels(torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()
    device.use_deterministic_kernels(CUDA)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
    assert not any(getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in FUSED)
    prepare_convolutions(method("resnet18"), CUDA)
    assert not torch.backends.cudnn.benchmark  # its choice may differ between two starts


@pytest.mark.parametrize(
    ("capability", "chosen", "folder"),
    [("avx2", None, "{}-avx2"), ("DEFAULT", "{}", "{}-default"), ("avx2", "/mine", "/mine"), (None, "{}", "{}")],
)
def test_compiled_code_of_other_kernels_has_a_folder_of_its_own(
    capability: str | None, chosen: str | None, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's cache is keyed without the kernels: a run with AVX2 kernels took AVX-512 code and its loss was NaN."""
    default = default_cache_dir()
    for name, value in (("ATEN_CPU_CAPABILITY", capability), ("TORCHINDUCTOR_CACHE_DIR", chosen)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value.format(default))
    device._separate_cache()
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == folder.format(default)
