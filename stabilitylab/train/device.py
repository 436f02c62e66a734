"""Which device a process trains on, and what is compiled for it."""

from __future__ import annotations

import torch

from stabilitylab.errors import ConfigError
from stabilitylab.methods.base import Method


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` takes CUDA, then MPS, then the CPU. On CUDA each process takes the device of its local rank."""
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = found.type if found is not None else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{local_rank % torch.cuda.device_count()}"  # Slurm may show each task its own device alone
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def compile_encoders(method: Method, device: torch.device) -> None:
    """Compile the encoders in place: parameters keep their names. On the CPU attention is written out, so that it fuses
    with its neighbours: with few tokens torch's own kernel takes twice as long."""
    torch.compiler.reset()  # of the models of earlier runs in this process: a function is compiled a few times at most
    encoders = [method.base_encoder]
    if method.uses_momentum_encoder:
        encoders.append(method.get_submodule("momentum_encoder"))
    for encoder in encoders:
        for module in encoder.modules():
            if device.type == "cpu" and hasattr(module, "fused_attn"):
                module.fused_attn = False  # type: ignore[assignment]
        encoder.compile()
