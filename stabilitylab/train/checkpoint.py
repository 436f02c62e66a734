"""Checkpoints: all that the next iteration depends on. Written whole or not at all."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from stabilitylab.config import ConfigError

Checkpoint = dict[str, Any]


def make_checkpoint(
    iteration: int, method: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler
) -> Checkpoint:
    """``iteration`` is the next one to be made. Batches depend on it and the seed alone, so it is the data's
    position too."""
    return {
        "iteration": iteration,
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "optimizer_name": type(optimizer).__name__,
        "scaler": scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_checkpoint(
    state: Checkpoint, method: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler
) -> None:
    """Load a checkpoint in place. ConfigError where it belongs to another architecture."""
    restore_method(state, method)
    was = state["optimizer_name"]
    try:
        if was != type(optimizer).__name__:  # torch would load the groups of another, to fail at the first update
            raise ValueError(f"it holds the state of {was}")
        optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        raise ConfigError(f"the checkpoint belongs to another optimizer or mitigation: {error}") from None
    scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"] and torch.cuda.device_count() == len(state["cuda_rng"]):
        torch.cuda.set_rng_state_all(state["cuda_rng"])


def restore_method(state: Checkpoint, method: nn.Module) -> None:
    """The weights alone."""
    own, saved = method.state_dict(), state["method"]
    differ = sorted(k for k in own.keys() | saved.keys() if k not in own or k not in saved)
    differ += [k for k in own if k in saved and own[k].shape != saved[k].shape]
    if differ:
        raise ConfigError(
            f"the checkpoint belongs to another architecture: {differ[0]} and {len(differ) - 1} more parameters "
            "differ; use the configuration that the run was started with"
        )
    method.load_state_dict(saved)


def save_checkpoint(folder: Path, state: Checkpoint, keep: int) -> Path:
    """Write ``folder/iteration-000600.pt`` through a temporary name, so that a kill leaves the last good one;
    then remove all but the latest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"iteration-{state['iteration']:06d}.pt"
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch's zip writer names a position where the disk is full
                raise OSError(errno.ENOSPC, f"it could not be written whole ({str(error).splitlines()[0]})") from error
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    for old in checkpoints(folder)[keep:]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, latest first."""
    return sorted(folder.glob("iteration-*.pt"), key=lambda path: int(path.stem.partition("-")[2]), reverse=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """The latest checkpoint that can be read. ConfigError if there is none."""
    found = checkpoints(folder)
    for path in found:
        try:
            state: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling a torn file raises whatever it runs into
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"{path} cannot be read ({reason}); trying an earlier one", stacklevel=2)
        else:
            return state
    what = "none of them can be read" if found else "there is none"
    raise ConfigError(f"no checkpoint in {folder}: {what}; start the run anew")
