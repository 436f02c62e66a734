"""``stabilitylab.record``: attach the recorder to any PyTorch loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from stabilitylab.attach.live import OnSpike
from stabilitylab.attach.ordering import check_ends
from stabilitylab.attach.recorder import LoopRecorder
from stabilitylab.attach.request import check_options, check_signals, chosen_layers, in_order
from stabilitylab.attach.start import Start
from stabilitylab.errors import RecordError
from stabilitylab.signals import DEFAULT

__all__ = ["LoopRecorder", "record"]


def record(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    run: str | None = None,
    runs_dir: str | Path | None = None,
    signals: Sequence[str] = DEFAULT,
    granularity: str = "block",
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
    depth: Sequence[str] | None = None,
    first: str | None = None,
    last: str | None = None,
    measure: str = "auto",
    every: int = 1,
    flush_every: int = 200,
    flush_seconds: float = 5.0,
    amp_skips: bool = False,
    resume: bool | int = False,
    config: dict[str, Any] | None = None,
    on_spike: OnSpike | None = None,
) -> LoopRecorder:
    """Record every layer of ``model`` from your own loop::

        with stabilitylab.record(model, optimizer, run="my_run") as rec:
            for images, labels in batches:
                loss = criterion(model(images), labels)
                loss.backward()
                rec.step(loss=loss, lr=lr)
                optimizer.step()
                optimizer.zero_grad()

    Nothing is wrapped and no gradient is changed: the training is bit-identical with and without recording.

    ``run``: name of the run; None takes the next run_NNN. ``resume``: True continues an existing run after its last
    iteration; an iteration continues there and drops what was recorded from it on.
    ``signals``: names in `stabilitylab.signals.SIGNALS`, where each signal is described.
    ``granularity``: block, module or param. ``include``, ``exclude``: patterns of layer names (``blocks.*``).
    ``depth``: layer names from input to output, if the order of execution is not the right one.
    ``first``, ``last``: the layers between which the lag is measured; by default the first and the last on the path of
    the loss.
    ``measure``: when to measure gradients: ``step`` (when ``rec.step`` is called), ``backward`` (at the end of the
    backward pass before it) or ``auto`` (at the call, unless gradients are freed, zero, clipped or applied by then).
    ``every``: record every this many iterations. ``amp_skips``: a GradScaler may skip updates; see `Recorder`.
    ``config``: any settings to save in the ``meta`` of the run.
    ``on_spike``: called with each `Spike` after it has ended and was written. An exception it raises ends the loop.

    In distributed training, call it in every process; rank 0 writes.

    Raises:
        RunExists: a run with this name exists and ``resume`` is False.
        RecordError: an option is invalid.
    """
    if not isinstance(model, nn.Module):
        raise RecordError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise RecordError(f"optimizer must be a torch optimizer or None, not {type(optimizer).__name__}")
    check_signals(signals, optimizer)
    check_options(
        every=every,
        flush_every=flush_every,
        flush_seconds=flush_seconds,
        resume=resume,
        run=run,
        config=config,
        measure=measure,
    )
    layers = chosen_layers(model, granularity, include, exclude)
    if depth is not None:
        layers = in_order(layers, list(depth))
    check_ends(layers, first, last)
    options: dict[str, Any] = {
        "signals": tuple(signals),
        "every": every,
        "flush_every": flush_every,
        "flush_seconds": flush_seconds,
        "amp_skips": amp_skips,
    }
    start = Start(layers, run, runs_dir, resume, dict(config or {}), ordered=depth is not None)
    return LoopRecorder(model, optimizer, start, options, ends=(first, last), measure=measure, on_spike=on_spike)
