"""``stabilitylab.record``: attach the recorder to any PyTorch loop."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from stabilitylab.experiments import provenance
from stabilitylab.models.layers import Layer, group_layers
from stabilitylab.recording.order import ExecutionOrder, names_tell_the_order
from stabilitylab.recording.recorder import NullSink, Recorder
from stabilitylab.recording.signals import DEFAULT, OF_FORWARD, SIGNALS
from stabilitylab.store.errors import RunExists
from stabilitylab.store.location import claim_run, find_run, runs_root
from stabilitylab.store.reader import open_run
from stabilitylab.store.writer import LayerRow, RunWriter


class RecordError(RuntimeError):
    """The recorder is used in a way that cannot be right. The message names the remedy."""


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
    every: int = 1,
    flush_every: int = 200,
    flush_seconds: float = 5.0,
    amp_skips: bool = False,
    resume: bool = False,
    config: dict[str, Any] | None = None,
) -> LoopRecorder:
    """Record every layer of ``model`` from your own loop::

        with stabilitylab.record(model, optimizer, run="my_run") as rec:
            for images, labels in batches:
                loss = criterion(model(images), labels)
                loss.backward()
                rec.step(loss=loss, lr=lr)
                optimizer.step()
                optimizer.zero_grad()

    Nothing is wrapped and no gradient changes: the training is bit-identical with and without.

    ``run``: the run's name; None takes the next run_NNN. A taken name raises `RunExists`; ``resume`` goes on with it.
    ``signals``: of grad_norm (L2), grad_max (largest entry), weight_norm, nonfinite (share of NaN or infinite
    entries), adam_rms (RMS_t; needs ``optimizer``), update_ratio (size of the update over the weights'),
    activation_max, attention_max (forward hooks).
    ``granularity``: block, module or param. ``include``, ``exclude``: patterns of layer names (``blocks.*``).
    ``depth``: layer names from input to output, where the order found is not the right one.
    ``every``: record each how many iterations. ``amp_skips``: a GradScaler skips updates; see `Recorder`.
    ``config``: what you want to find in the run's ``meta`` later.

    In a distributed training call it in every process: rank 0 writes.
    """
    unknown = [name for name in signals if name not in (*SIGNALS, *OF_FORWARD)]
    if unknown or not signals:
        known = ", ".join((*SIGNALS, *OF_FORWARD))
        raise RecordError(
            f"unknown signal {unknown[0]!r}; there are {known}" if unknown else f"no signals; take {known}"
        )
    if "adam_rms" in signals and optimizer is None:
        raise RecordError("adam_rms reads the optimizer's state: record(model, optimizer, ...)")
    layers = _chosen(model, granularity, include, exclude)
    if not any(layer.trainable for layer in layers):
        raise RecordError("the model has no trainable parameter to record; unfreeze one, or widen include=")
    if depth is not None:
        layers = _in_order(layers, list(depth))
    recorder_options = {
        "signals": tuple(signals),
        "every": every,
        "flush_every": flush_every,
        "flush_seconds": flush_seconds,
        "amp_skips": amp_skips,
    }
    watch = None
    if depth is None and granularity == "block" and not names_tell_the_order(layers):
        watch = ExecutionOrder(model, layers)
    return LoopRecorder(model, optimizer, layers, watch, run, runs_dir, resume, dict(config or {}), recorder_options)


class LoopRecorder:
    """What `record` returns. A context manager; leaving it, also by an exception, writes all there is."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        layers: list[Layer],
        watch: ExecutionOrder | None,
        run: str | None,
        runs_dir: str | Path | None,
        resume: bool,
        config: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        self.iteration = 0
        self._watch, self._layers = watch, layers
        self._unordered = False
        self._writer = None
        self.path: Path | None = None
        if not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0:
            self._writer = self._open(model, run, runs_dir, resume, config)
        sharded = any(hasattr(p, "to_local") for layer in layers for p in layer.parameters)
        # Where gradients are whole, only the process that writes measures; shards need every process.
        self._recorder = Recorder(
            layers,
            self._writer or NullSink(),
            model=model,
            optimizer=optimizer,
            log_grads=self._writer is not None or sharded,
            **options,
        )
        self._closed = False

    def _open(
        self, model: nn.Module, run: str | None, runs_dir: str | Path | None, resume: bool, config: dict[str, Any]
    ) -> RunWriter:
        root = runs_root(str(runs_dir) if runs_dir is not None else None)
        rows = [LayerRow(i, x.name, x.depth, x.num_params, x.trainable) for i, x in enumerate(self._layers)]
        meta = provenance() | {"device": str(next(model.parameters()).device)}
        if resume:
            if run is None:
                raise RecordError("resume=True needs the name of the run: run=...")
            self.path = find_run(root, run)
            with open_run(self.path) as reader:
                self.iteration = reader.num_iterations
                known = {row.layer_id: row.name for row in reader.layers()}
            if known != {row.layer_id: row.name for row in rows}:
                raise RecordError(f"run {run} was recorded with other layers; give it the same model and options")
            return RunWriter.resume(self.path, self.iteration, meta=meta)
        try:
            self.path = claim_run(root, run)
        except RunExists as error:
            raise RunExists(f"{error} (record(..., resume=True) goes on with it)") from None
        self._unordered = self._watch is not None
        return RunWriter.create(self.path, config=config, meta=meta, layers=[] if self._unordered else rows)

    @property
    def run(self) -> str:
        """The run's name; empty in a process that does not write."""
        return self.path.name if self.path is not None else ""

    def step(
        self,
        loss: float | Tensor | None = None,
        lr: float | None = None,
        *,
        iteration: int | None = None,
        grad_scale: float | Tensor = 1.0,
        stats: Tensor | None = None,
        **scalars: float | Tensor,
    ) -> None:
        """Record an iteration: call it between the last ``backward()`` and ``optimizer.step()``, before clipping.

        ``grad_scale``: a GradScaler's scale, where ``scaler.unscale_(optimizer)`` was not called. ``scalars``: any
        numbers of your own. Tensors are not waited for. ``stats``: what `measure` gave earlier.
        """
        self._must_be_open()
        if stats is None and not self._recorder.has_gradient() and self._recorder._log_grads:
            raise RecordError(
                "rec.step() found no gradient: call it after loss.backward() and before optimizer.zero_grad()"
            )
        if iteration is not None:
            if iteration < self.iteration:
                raise RecordError(f"iteration {iteration} is recorded already; the next is {self.iteration}")
            self.iteration = iteration
        self._settle_order()
        columns: dict[str, Any] = {}
        if loss is not None:
            columns["loss"] = loss.detach() if isinstance(loss, Tensor) else float(loss)
        if lr is not None:
            columns["lr"] = float(lr)
        for name, value in scalars.items():
            self._recorder.scalar(self.iteration, name, value.detach() if isinstance(value, Tensor) else float(value))
        self._recorder.step(self.iteration, stats=stats, grad_scale=grad_scale, **columns)
        self.iteration += 1
        self._recorder.flush_if_due()

    def measure(self) -> Tensor | None:
        """The gradients' statistics as they are now, for a later ``step(stats=...)``."""
        self._must_be_open()
        return self._recorder.measure()

    def log(
        self, metrics: Mapping[str, float | Tensor] | None = None, *, num_samples: int = 0, **more: float | Tensor
    ) -> None:
        """Record evaluations at this point of the training, e.g. ``rec.log(knn_top1=0.83, num_samples=10_000)``.
        Accuracies are fractions; with ``num_samples`` dips are judged against the sampling error."""
        self._must_be_open()
        for name, value in {**(metrics or {}), **more}.items():
            number = float(value)
            if name.endswith(("_top1", "_top5")) and not (0 <= number <= 1 or math.isnan(number)):
                raise RecordError(f"{name} = {number:g} is no fraction; log accuracies between 0 and 1")
            self._recorder.log(self.iteration, name, number, num_samples)

    def event(self, kind: str, detail: str = "") -> None:
        """Record that something happened."""
        self._must_be_open()
        self._recorder.event(self.iteration, kind, detail)

    def close(self, status: str = "finished") -> None:
        """Write all there is and take hooks away. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._settle_order()
            self._recorder.close()
        finally:
            if self._writer is not None:
                self._writer.close(status)

    def _settle_order(self) -> None:
        """The first forward pass has shown in which order the layers run."""
        if self._watch is None:
            return
        depths = self._watch.finish()
        self._watch = None
        if self._writer is not None and self._unordered:
            layers = self._layers
            self._writer.append(
                "layers",
                {
                    "layer_id": list(range(len(layers))),
                    "name": [layer.name for layer in layers],
                    "depth": depths,
                    "num_params": [layer.num_params for layer in layers],
                    "trainable": [layer.trainable for layer in layers],
                },
            )

    def _must_be_open(self) -> None:
        if self._closed:
            raise RecordError(f"the recorder of {self.run} is closed; call record(..., resume=True) to go on")

    def __enter__(self) -> LoopRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("finished" if kind is None else "crashed" if issubclass(kind, Exception) else "stopped")


def _chosen(
    model: nn.Module, granularity: str, include: str | Iterable[str], exclude: str | Iterable[str]
) -> list[Layer]:
    if granularity not in ("block", "module", "param"):
        raise RecordError(f"granularity {granularity!r} is not block, module or param")
    wanted = [include] if isinstance(include, str) else list(include)
    unwanted = [exclude] if isinstance(exclude, str) else list(exclude)
    found = [
        layer
        for layer in group_layers(model.named_parameters(), granularity)
        if any(fnmatch.fnmatchcase(layer.name, p) for p in wanted)
        and not any(fnmatch.fnmatchcase(layer.name, p) for p in unwanted)
    ]
    return [Layer(layer.name, depth, layer.parameters) for depth, layer in enumerate(found)]


def _in_order(layers: list[Layer], names: list[str]) -> list[Layer]:
    have = {layer.name: layer for layer in layers}
    missing = [name for name in names if name not in have] + [name for name in have if name not in names]
    if missing:
        raise RecordError(f"depth= must name every layer once; {missing[0]!r} differs; there are {', '.join(have)}")
    return [Layer(name, depth, have[name].parameters) for depth, name in enumerate(names)]
