"""Checkpoints. Written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(folder: Path, iteration: int, state: dict[str, Any]) -> Path:
    """Write ``folder/iteration-000600.pt`` through a temporary name, so a kill leaves the last good one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"iteration-{iteration:06d}.pt"
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save({"iteration": iteration, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path
