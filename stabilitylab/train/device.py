"""Choose the device of a process and compile the encoders for it."""

from __future__ import annotations

import logging
import os

import torch

from stabilitylab.errors import ConfigError
from stabilitylab.methods.base import Method

_MOST_COMPILED = 1000
"""Combinations of model and shape that one process compiles before torch falls back to uncompiled code."""

_CONVOLUTIONAL = 8
"""An encoder with this many convolutions is a convolutional network; a ViT has one, or five in a conv stem."""


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Choose a device. ``auto`` prefers CUDA, then MPS, then the CPU. On CUDA each process uses the device of its local
    rank. Raises ConfigError if the device is not available."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = accelerator.type if accelerator is not None else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{local_rank % torch.cuda.device_count()}"  # Slurm may expose only one device to each task
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def prepare_convolutions(method: Method, device: torch.device) -> None:
    """Make the convolutions of a ResNet fast on CUDA: weights and activations are stored channels last, and cuDNN picks
    the fastest algorithm for each shape, since shapes stay the same, unless kernels must be deterministic. Other
    encoders and devices are left as they are."""
    weights = [m.weight for m in method.base_encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    if device.type != "cuda" or len(weights) < _CONVOLUTIONAL:
        return
    method.to(memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()


def use_deterministic_kernels(device: torch.device) -> None:
    """Make a run repeat to the last bit on CUDA, where many kernels add in an order that varies. Call it before the
    first operation on the device. It applies to the whole process. An operation without such a kernel warns; fused
    attention, which would, is replaced by plain matrix products."""
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    for kernels in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{kernels}_sdp")(False)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _not_about_cuda_home(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("No CUDA runtime is found")


def _separate_cache() -> None:
    """Keep the code compiled under ``ATEN_CPU_CAPABILITY`` in a folder of its own, unless the user chose one. torch's
    cache on disk is keyed without it, and code made for other kernels can return NaN."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    capability, default = os.environ.get("ATEN_CPU_CAPABILITY"), default_cache_dir()
    # torch sets the variable to its default while it is imported.
    if capability and os.environ.get("TORCHINDUCTOR_CACHE_DIR", default) == default:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{default}-{capability.lower()}"


def compile_encoders(method: Method, device: torch.device) -> None:
    """Compile the encoders in place; parameters keep their names. On the CPU, fused attention is disabled so that
    attention fuses with adjacent operations: with few tokens, torch's own kernel takes twice as long.

    A later run in the same process reuses compiled code if its model and batch are the same. Each shape has its own
    code, so the numbers of a run do not depend on earlier runs."""
    _separate_cache()
    # On a machine with the CUDA toolkit and without a GPU, the compiler would warn on standard error.
    logging.getLogger("torch.utils.cpp_extension").addFilter(_not_about_cuda_home)
    limits = torch._dynamo.config
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        if not hasattr(limits, name):  # before torch 2.7
            name = name.replace("recompile", "cache_size")
        setattr(limits, name, max(getattr(limits, name), _MOST_COMPILED))
    encoders = [method.base_encoder]
    if method.uses_momentum_encoder:
        encoders.append(method.get_submodule("momentum_encoder"))
    for encoder in encoders:
        for module in encoder.modules():
            if device.type == "cpu" and hasattr(module, "fused_attn"):
                module.fused_attn = False  # type: ignore[assignment]
        encoder.compile(dynamic=False)
