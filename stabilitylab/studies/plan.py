"""Measure the resources that a configuration needs by running a few steps of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stabilitylab.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from stabilitylab.train.trainer import Trainer

STEPS = 5
_ROW = 6.0
"""Compressed bytes per recorded value in a finished run, including the iteration and layer columns."""


@dataclass(frozen=True)
class Plan:
    """Sizes are in bytes per process. ``activations`` are the tensors that one step saves for its backward pass.
    ``peak`` is the most memory that torch had allocated on a GPU, and ``capacity`` what the GPU has; 0 elsewhere."""

    device: str
    processes: int
    parameters: int
    trained: int
    iterations: int
    warmup: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    capacity: int
    images_per_second: float
    seconds_per_step: float
    hours: float
    evaluation_seconds: float
    rows: int
    rows_bytes: int
    checkpoint: int
    checkpoints_bytes: int


def plan(config: Config) -> Plan:
    """Build the trainer, run one warmup step and `STEPS` timed steps, and evaluate once. Nothing is recorded."""
    import torch

    from stabilitylab.recording.recorder import Recorder
    from stabilitylab.recording.sink import NullSink
    from stabilitylab.train.distributed import describe
    from stabilitylab.train.trainer import Trainer

    trainer = Trainer(config, describe())
    on_gpu = trainer.device.type == "cuda"
    layers = trainer.layers() if config.record.log_grads else []
    recorder = Recorder(
        layers,
        NullSink(),
        model=trainer.method,
        optimizer=trainer.optimizer,
        signals=config.record.signals,
        log_grads=bool(layers),
        every=config.record.every,
    )
    trainer.method.train()
    activations, seconds = 0, []
    for iteration, views in enumerate(trainer.batches.iterate(0, STEPS + 1)):
        if iteration == 0:
            activations = _held(trainer, recorder, views)
        else:
            trainer.step(recorder, iteration, views)
        _wait(trainer)
        seconds.append(time.perf_counter())
    step = (seconds[-1] - seconds[0]) / (len(seconds) - 1)
    evaluation = 0.0
    if config.eval.knn_every:
        trainer.monitor(trainer.method.base_encoder)  # warm up: the first call decodes the images
        _wait(trainer)
        started = time.perf_counter()
        trainer.monitor(trainer.method.base_encoder)
        _wait(trainer)
        evaluation = time.perf_counter() - started
    recorder.close()
    every = config.eval.knn_every
    evaluations = 1 + math.ceil(trainer.total / every) if every else 0
    parameters = list(trainer.method.parameters())
    rows = len(layers) * math.ceil(trainer.total / config.record.every) if layers else 0
    weights, optimizer = _bytes(parameters), _state(trainer)
    checkpoint = weights + optimizer
    kept = config.train.checkpoint_keep if config.train.checkpoint_every else 1
    return Plan(
        device=str(trainer.device),
        processes=trainer.world.size,
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        iterations=trainer.total,
        warmup=trainer.warmup,
        weights=weights,
        gradients=_bytes([p for p in parameters if p.requires_grad]),
        optimizer=optimizer,
        activations=activations,
        peak=torch.cuda.max_memory_allocated(trainer.device) if on_gpu else 0,
        capacity=torch.cuda.get_device_properties(trainer.device).total_memory if on_gpu else 0,
        images_per_second=config.train.batch_size / step,
        seconds_per_step=step,
        hours=(trainer.total * step + evaluations * evaluation) / 3600,
        evaluation_seconds=evaluation,
        rows=rows,
        rows_bytes=round(rows * len(config.record.signals) * _ROW),
        checkpoint=checkpoint,
        checkpoints_bytes=checkpoint * kept,
    )


def _held(trainer: Trainer, recorder: object, views: list[Tensor]) -> int:
    """Bytes of the distinct tensors that one step saves for its backward pass, excluding weights."""
    import torch

    from stabilitylab.recording.recorder import Recorder

    assert isinstance(recorder, Recorder)
    known = {p.untyped_storage().data_ptr() for p in trainer.method.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.step(recorder, 0, views)
    return sum(kept.values())


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _state(trainer: Trainer) -> int:
    import torch

    values = [value for state in trainer.optimizer.state.values() for value in state.values()]
    return _bytes([value for value in values if isinstance(value, torch.Tensor)])


def _wait(trainer: Trainer) -> None:
    import torch

    if trainer.device.type == "cuda":
        torch.cuda.synchronize()


def lines(plan: Plan) -> list[str]:
    """The plan as lines of text."""
    count = f"{plan.processes} processes" if plan.processes > 1 else "one process"
    memory = plan.weights + plan.gradients + plan.optimizer + plan.activations
    return [
        f"device       {plan.device}, {count}",
        f"parameters   {plan.parameters:,}, of which {plan.trained:,} are trained",
        f"memory       {size(memory)} per device: weights {size(plan.weights)}, gradients {size(plan.gradients)}, "
        f"optimizer {size(plan.optimizer)}, activations {size(plan.activations)}"
        + (f"; at its peak {size(plan.peak)} of {size(plan.capacity)}" if plan.peak else ""),
        f"length       {plan.iterations:,} iterations, {plan.warmup:,} of warmup",
        f"speed        {plan.images_per_second:,.0f} images/s, {plan.seconds_per_step * 1000:,.0f} ms per step "
        f"({STEPS} steps measured); {plan.evaluation_seconds:.2f} s per evaluation",
        f"time         {duration(3600 * plan.hours)}",
        f"disk         {plan.rows:,} rows of gradients, about {size(plan.rows_bytes)}; checkpoints "
        f"{size(plan.checkpoints_bytes)} ({size(plan.checkpoint)} each)",
    ]


def duration(seconds: float) -> str:
    """Format a time in the unit that suits its length: ``40 s``, ``11 minutes``, ``2.5 hours``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:,.1f} hours"


def size(count: float) -> str:
    """Format a number of bytes: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
