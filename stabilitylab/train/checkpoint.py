"""Checkpoints: the complete state that the next iteration depends on, written atomically."""

from __future__ import annotations

import copy
import errno
import os
import re
import warnings
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from stabilitylab.errors import ConfigError

Checkpoint = dict[str, Any]


def make_checkpoint(
    iteration: int, method: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler
) -> Checkpoint:
    """``iteration`` is the next iteration to run. Batches depend only on it and the seed, so it also determines the
    position in the data."""
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
    state: Checkpoint,
    method: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    names: tuple[Sequence[str], Sequence[str]] | None = None,
) -> None:
    """Load a checkpoint in place. Raises ConfigError if it is damaged or belongs to another architecture.

    ``names``: the names of the parameters trained by the saved and by the current optimizer, each in the optimizer's
    order, if they differ. ``state`` is not modified, so several runs can branch from it."""
    lacking = sorted(_KEYS - state.keys())
    if lacking:
        raise ConfigError(f"the checkpoint is damaged: it lacks {', '.join(lacking)}; remove it to use another")
    # Optimizer.load_state_dict does not copy the tensors, and the optimizer would update them in place.
    state = {**state, "optimizer": copy.deepcopy(state["optimizer"])}
    restore_method(state, method)
    was = state["optimizer_name"]
    try:
        if names is not None:
            carry_optimizer(state["optimizer"], names[0], optimizer, names[1])
        elif was != type(optimizer).__name__:  # torch would load it and fail at the first update
            raise ValueError(f"it contains the state of {was}")
        else:
            optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        raise ConfigError(f"the checkpoint belongs to another optimizer or mitigation: {error}") from None
    except (KeyError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise ConfigError(f"the checkpoint's optimizer state is damaged: {type(error).__name__}: {error}") from None
    try:
        scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and torch.cuda.device_count() == len(state["cuda_rng"]):
            torch.cuda.set_rng_state_all(state["cuda_rng"])
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ConfigError(f"the checkpoint's random state is damaged: {error}; remove it to use another") from None


def restore_method(state: Checkpoint, method: nn.Module) -> None:
    """Load only the weights. Raises ConfigError if they are damaged or belong to another architecture."""
    own, saved = method.state_dict(), state.get("method")
    if not isinstance(saved, dict) or not all(isinstance(value, torch.Tensor) for value in saved.values()):
        raise ConfigError("the checkpoint is damaged: its weights are not tensors; remove it to use another")
    differ = sorted(str(k) for k in own.keys() | saved.keys() if k not in own or k not in saved)
    differ += [k for k in own if k in saved and own[k].shape != saved[k].shape]
    if differ:
        raise ConfigError(
            f"the checkpoint belongs to another architecture: {differ[0]} and {len(differ) - 1} more parameters "
            "differ; use the configuration with which the run was started"
        )
    method.load_state_dict(saved)


def carry_optimizer(saved: Checkpoint, names: Sequence[str], optimizer: Optimizer, own_names: Sequence[str]) -> None:
    """Load the state of another optimizer of the same class, matching parameters by name. ``names``: the parameters of
    the saved optimizer, in its order; ``own_names``: those of this one. Parameters without saved state start fresh."""
    index = {name: i for i, name in enumerate(names)}
    state = {i: saved["state"][index[name]] for i, name in enumerate(own_names) if index.get(name) in saved["state"]}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(folder: Path, state: Checkpoint, keep: int, protected: Collection[int] = ()) -> Path:
    """Write ``folder/iteration-000600.pt`` atomically, so that a killed process leaves the previous checkpoint intact.
    Then remove all but the latest ``keep`` checkpoints and those at ``protected`` iterations."""
    folder.mkdir(exist_ok=True)  # not its parents, which would recreate a run that has been moved
    path = folder / f"iteration-{state['iteration']:06d}.pt"
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # raised by torch's zip writer when the disk is full
                raise OSError(errno.ENOSPC, f"the file is incomplete ({str(error).splitlines()[0]})") from error
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    for old in checkpoints(folder)[keep:]:
        if iteration_of(old) not in protected:
            old.unlink()
    return path


_NAME = re.compile(r"iteration-([0-9]{1,18})\.pt")
_KEYS = {"iteration", "method", "optimizer", "optimizer_name", "scaler", "rng", "cuda_rng"}


def iteration_of(checkpoint: Path) -> int:
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match[1])


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, latest first. Other files, such as the user's copies, are ignored."""
    paths = (path for path in folder.glob("iteration-*.pt") if _NAME.fullmatch(path.name) and path.is_file())
    return sorted(paths, key=iteration_of, reverse=True)


def _check(state: Checkpoint) -> None:
    """Raise ValueError if ``state`` is not a checkpoint of StabilityLab."""
    iteration = state.get("iteration") if isinstance(state, dict) else None
    if not isinstance(iteration, int) or iteration < 0:
        raise ValueError("it is not a checkpoint of StabilityLab")


def load_tensors(path: Path) -> Any:
    """The content of a file written by `torch.save`, on the CPU. Raises RuntimeError if a part does not have its
    checksum, which `torch.load` ignores: one flipped bit would give other weights. Files older than torch 1.6 have
    none."""
    with warnings.catch_warnings():  # about what is damaged, which the checksum tells
        warnings.simplefilter("ignore", UserWarning)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (part := archive.testzip()) is not None:
                    raise RuntimeError(f"{part} does not match its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)


def load_checkpoint(folder: Path, at: int | None = None) -> Checkpoint:
    """Load the latest readable checkpoint at or before iteration ``at``. Raises ConfigError if there is none."""
    candidates = [path for path in checkpoints(folder) if at is None or iteration_of(path) <= at]
    for path in candidates:
        try:
            state: Checkpoint = load_tensors(path)
            _check(state)
        except Exception as error:  # unpickling a truncated file can raise any exception
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"{path} cannot be read ({reason}); trying an earlier one", stacklevel=2)
        else:
            return state
    if candidates or at is None:
        what = "no readable checkpoint" if candidates else "no checkpoint"
        raise ConfigError(f"{what} in {folder}; start the run again")
    there = ", ".join(str(iteration_of(path)) for path in reversed(checkpoints(folder))) or "none"
    raise ConfigError(
        f"no checkpoint at or before iteration {at} in {folder} (available: {there}); train with --keep-before-spikes "
        "or --set train.checkpoint_every=N --set train.checkpoint_keep=N"
    )
