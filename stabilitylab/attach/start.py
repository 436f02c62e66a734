"""Opens the run that `stabilitylab.record` writes to: a new one, or one to resume."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from stabilitylab.errors import RecordError, RunExists, StoreError
from stabilitylab.models.layers import Layer
from stabilitylab.run.provenance import provenance
from stabilitylab.store.location import claim_run, find_run, runs_root
from stabilitylab.store.reader import open_run
from stabilitylab.store.writer import LayerRow, RunWriter


@dataclass(frozen=True)
class Start:
    """The request of the caller. ``ordered``: whether the depth of the layers is known before they run."""

    layers: list[Layer]
    run: str | None
    runs_dir: str | Path | None
    resume: bool | int
    config: dict[str, Any]
    ordered: bool


@dataclass(frozen=True)
class Opened:
    """``needs_order``: whether the depth of the layers must still be written to the store."""

    iteration: int
    needs_order: bool
    path: Path | None = None
    writer: RunWriter | None = None


def writes() -> bool:
    """Whether this process is the one that records."""
    return not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0


def open_run_for(start: Start, *, device: str, together: bool) -> Opened:
    """Open the run if this process writes.

    ``together``: all processes call this and get the same iteration, or all fail: shards must be measured by all
    processes at the same iterations.
    """
    opened, error = Opened(0, not start.ordered), None
    if writes():
        try:
            opened = _open(start, device)
        except Exception as raised:
            error = raised
    if together:
        shared = [(opened.iteration, opened.needs_order, str(error) if error else None)]
        dist.broadcast_object_list(shared, src=0)
        iteration, needs_order, failure = shared[0]
        if failure is not None and error is None:
            raise RecordError(failure)
        opened = Opened(iteration, needs_order, opened.path, opened.writer)
    if error is not None:
        raise error
    return opened


def _open(start: Start, device: str) -> Opened:
    root = runs_root(str(start.runs_dir) if start.runs_dir is not None else None)
    rows = [LayerRow(i, x.name, x.depth, x.num_params, x.trainable) for i, x in enumerate(start.layers)]
    meta = provenance() | {"device": device}
    try:
        if start.resume is not False:
            return _go_on(start, find_run(root, str(start.run)), rows, meta)
        path = claim_run(root, start.run)
    except RunExists as error:
        raise RunExists(f"{error} (record(..., resume=True) continues it)") from None
    except StoreError as error:
        raise type(error)(str(error).replace("--runs-dir", "runs_dir=")) from None
    try:
        layers = rows if start.ordered else []
        writer = RunWriter.create(path, config=start.config, meta=meta, layers=layers)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)  # created by this call
        raise
    return Opened(0, not start.ordered, path, writer)


def _go_on(start: Start, path: Path, rows: list[LayerRow], meta: dict[str, str]) -> Opened:
    with open_run(path) as reader:
        at = reader.num_iterations if start.resume is True else int(start.resume)
        known = {row.layer_id: (row.name, row.num_params) for row in reader.layers()}
    if known and known != {row.layer_id: (row.name, row.num_params) for row in rows}:
        raise RecordError(f"run {path.name} was recorded with other layers; give it the same model and options")
    # A run that was killed before its first flush has no layers yet.
    needs_order = not known and not start.ordered
    layers = rows if not known and start.ordered else None
    return Opened(at, needs_order, path, RunWriter.resume(path, at, meta=meta, layers=layers))
