"""Replay of a recorded run: restore a checkpoint and train on the same batches. Nothing is written to the run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from stabilitylab.cause.reached import require_reached
from stabilitylab.cause.traces import NormRecorder, Trace
from stabilitylab.config import from_dict, read_toml
from stabilitylab.data.batches import BatchOrder
from stabilitylab.errors import ConfigError
from stabilitylab.models.layers import Layer
from stabilitylab.run.provenance import provenance
from stabilitylab.store.reader import open_run
from stabilitylab.train.checkpoint import Checkpoint, checkpoints, iteration_of, load_checkpoint
from stabilitylab.train.trainer import Trainer

TOLERATED = 1e-3
"""Largest relative difference of a replayed norm that a different processor explains. Different data or augmentations
cause larger ones."""
CHECKED = 2
"""Number of iterations that are replayed and compared: the second one follows an optimizer update."""
HELD_BYTES = 2**28
"""Largest size of the batches that are kept for the next future; larger ones are augmented again."""


@dataclass(frozen=True)
class ReplayCheck:
    """Agreement of replayed norms with the recorded ones. ``largest``: largest relative difference, found in ``layer``
    (or the loss) at ``iteration``; 0 if identical. ``differs``: what has changed since the run was recorded.
    ``only_loss``: no norms were recorded, so that only the loss was compared."""

    iterations: tuple[int, ...]
    largest: float
    layer: str
    iteration: int
    differs: tuple[str, ...] = ()
    only_loss: bool = False

    @property
    def exact(self) -> bool:
        return self.largest == 0

    def __str__(self) -> str:
        where = ", ".join(map(str, self.iterations))
        if self.exact:
            what = "loss bit for bit; no norms were recorded" if self.only_loss else "norms bit for bit"
            return f"replay check: iterations {where} reproduce the recorded {what}"
        since = f" ({'; '.join(self.differs)})" if self.differs else ""
        return (
            f"replay check: {'losses' if self.only_loss else 'norms'} differ from the recorded ones by up to "
            f"{self.largest:.1e} of their size, the most at iteration {self.iteration} in {self.layer}{since}; the "
            "difference grows with the distance from a checkpoint, so experiments compare only futures replayed here"
        )


class Replay:
    """The trainer of a run that `stablab train` recorded, which can be restored and stepped.

    Raises:
        ConfigError: the run has no configuration or no checkpoint.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        if not (run_dir / "config.toml").is_file():
            raise ConfigError(
                f"run {run_dir.name} cannot be replayed: it was not trained by `stablab train`, so it has no "
                "configuration; use stabilitylab.cause.impulse with your own functions to step and restore"
            )
        folder = run_dir / "checkpoints"
        self.checkpoints = sorted(map(iteration_of, checkpoints(folder)))
        if not self.checkpoints:
            raise ConfigError(f"run {run_dir.name} cannot be replayed: {KEEP} (there is no checkpoint in {folder})")
        self.trainer = Trainer(from_dict(read_toml(run_dir / "config.toml")))
        self.trainer.method.train()
        self.layers = self.trainer.layers()
        self._held: tuple[int, int, list[list[Tensor]]] = (0, 0, [])
        self._checks: dict[int, ReplayCheck] = {}

    @property
    def names(self) -> list[str]:
        """The recorded layers, from input to output."""
        return [layer.name for layer in self.layers]

    def layer(self, name: str) -> Layer:
        """The layer ``name``. Raises ConfigError if it does not exist or has no trained weights."""
        matching = [layer for layer in self.layers if layer.name == name]
        if not matching:
            raise ConfigError(f"run {self.run_dir.name} has no layer {name!r}; its layers: {', '.join(self.names)}")
        if not matching[0].trainable:
            raise ConfigError(f"layer {name!r} of run {self.run_dir.name} has no trained weights; choose another layer")
        return matching[0]

    def require(self, at: Sequence[int], steps: int = 1) -> None:
        """Raise ConfigError if an iteration has no checkpoint before or ``steps`` after it, or was not reached."""
        if not at:
            raise ConfigError("no iteration is given")
        require_reached(self.run_dir, max(at), self.checkpoints)
        there = ", ".join(map(str, self.checkpoints))
        for iteration in at:
            if iteration < self.checkpoints[0]:
                raise ConfigError(
                    f"run {self.run_dir.name} has no checkpoint at or before iteration {iteration} "
                    f"(checkpoints: {there}); {KEEP}"
                )
            if iteration + steps > self.trainer.total:
                raise ConfigError(
                    f"run {self.run_dir.name} has {self.trainer.total} iterations, but the experiment needs {steps} "
                    f"from iteration {iteration} on; choose an earlier or a shorter one"
                )

    def distance(self, at: int) -> int:
        """Number of iterations from the last checkpoint at or before ``at`` to ``at``."""
        return at - max(t for t in self.checkpoints if t <= at)

    def state_at(self, at: int) -> Checkpoint:
        """The state before iteration ``at``: the last checkpoint at or before it, trained up to it."""
        self.trainer.restore(load_checkpoint(self.run_dir / "checkpoints", at))
        start = self.trainer.start
        if start < at:
            self.run(start, at - start)
        return copy.deepcopy(self.trainer.state(at))

    def future(
        self,
        state: Checkpoint,
        steps: int,
        *,
        batches: int | None = None,
        prepare: Callable[[], None] | None = None,
        on_gradient: Callable[[int], None] | None = None,
        metric_at: Sequence[int] = (),
    ) -> Trace:
        """Train ``steps`` iterations from ``state`` with the schedules of the run.

        ``batches``: index of the first batch, by default that of the run. ``prepare``: changes the restored state.
        ``metric_at``: numbers of iterations after which to evaluate the metric.
        """
        self.trainer.restore(state)
        if prepare is not None:
            prepare()
        return self.run(state["iteration"], steps, batches=batches, on_gradient=on_gradient, metric_at=metric_at)

    def run(
        self,
        start: int,
        steps: int,
        *,
        batches: int | None = None,
        on_gradient: Callable[[int], None] | None = None,
        metric_at: Sequence[int] = (),
    ) -> Trace:
        """As `future`, from the current state of the trainer."""
        recorder = NormRecorder(self.layers, on_gradient)
        metric: dict[int, float] = {}
        first = start if batches is None else batches
        for offset, views in enumerate(self.views(first, steps)):
            self.trainer.step(recorder, start + offset, views)
            if offset + 1 in metric_at:
                metric[offset + 1] = float(self.trainer.monitor(self.trainer.method.base_encoder))
        return recorder.trace(metric)

    def views(self, start: int, steps: int) -> Iterator[list[Tensor]]:
        """The augmented views of batches ``start`` to ``start + steps - 1``. The batches of the latest call are kept if
        they are small, because all futures from one iteration see the same ones."""
        if self._held[:2] == (start, steps):
            return iter(self._held[2])
        return self._make_views(start, steps)

    def _make_views(self, start: int, steps: int) -> Iterator[list[Tensor]]:
        held: list[list[Tensor]] | None = []
        for views in self.trainer.batches.iterate(start, start + steps):
            if held is not None:
                held.append(views)
                if len(held) * sum(v.numel() * v.element_size() for v in views) > HELD_BYTES:
                    held = None
            yield views
        if held is not None:
            self._held = (start, steps, held)

    @property
    def order(self) -> BatchOrder:
        """The assignment of images to batches."""
        return self.trainer.batches.order

    @cached_property
    def recorded(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Iterations (T,), norms (T, L) of the layers of the replay, and loss (T,); NaN where nothing was recorded."""
        with open_run(self.run_dir) as reader:
            table = reader.table("iterations")
            ids = {row.name: row.layer_id for row in reader.layers()}
            series = reader.layer_series()
        iterations, last = np.unique(table["iteration"][::-1], return_index=True)
        loss = table["loss"].astype(float)[::-1][last]
        norms = np.full((len(iterations), len(self.layers)), np.nan)
        for column, name in enumerate(self.names):
            if ids.get(name) in series:
                t, values = series[ids[name]]
                place = np.searchsorted(iterations, t)
                known = (place < len(iterations)) & np.isin(t, iterations)
                norms[place[known], column] = values[known]
        return iterations, norms, loss

    def check(self, at: int | None = None) -> ReplayCheck:
        """Replay the first recorded iterations after the last checkpoint at or before ``at``, and compare the norms (or
        the loss, if no norms were recorded). Raises ConfigError if they differ by more than `TOLERATED`."""
        iterations = self.recorded[0]
        usable = [t for t in self.checkpoints if (at is None or t <= at) and t in iterations]
        if not usable:
            raise ConfigError(
                f"the replay of run {self.run_dir.name} cannot be checked, because no iteration after a checkpoint was "
                "recorded; record every iteration, and keep a checkpoint before the last iteration"
            )
        start = usable[-1]
        if start not in self._checks:
            self._checks[start] = self._check(start)
        return self._checks[start]

    def _check(self, start: int) -> ReplayCheck:
        iterations, norms, loss = self.recorded
        trace = self.future(
            load_checkpoint(self.run_dir / "checkpoints", start), min(CHECKED, self.trainer.total - start)
        )
        names = [*self.names, "the loss"]
        worst = ReplayCheck((), 0.0, names[0], start)
        compared: list[int] = []
        for offset in range(len(trace.loss)):
            row = np.flatnonzero(iterations == start + offset)
            if not len(row):
                continue
            was = np.array([*norms[row[0]], loss[row[0]]], np.float32)
            now = np.array([*trace.norms[offset], trace.loss[offset]], np.float32)
            apart = np.abs(now - was) / np.maximum(np.abs(was), 1e-30)
            apart[~np.isfinite(was) & ~np.isfinite(now)] = 0.0
            apart[np.isnan(was)] = 0.0  # not recorded
            apart = np.nan_to_num(apart, nan=np.inf)
            compared.append(start + offset)
            if apart.max() > worst.largest:
                worst = ReplayCheck((), float(apart.max()), names[int(apart.argmax())], start + offset)
        only_loss = bool(np.isnan(norms[np.isin(iterations, compared)]).all())
        check = ReplayCheck(
            tuple(compared), worst.largest, worst.layer, worst.iteration, self._differences(), only_loss
        )
        if check.largest > TOLERATED:
            since = "; ".join(check.differs) or "different data or a different machine"
            what = check.layer if check.layer == names[-1] else f"the gradient norm of {check.layer}"
            raise ConfigError(
                f"run {self.run_dir.name} cannot be replayed here: at iteration {check.iteration} {what} differs from "
                f"the recorded one by {check.largest:.1e} of its size ({since}); use the versions, the data and the "
                "device of the run"
            )
        return check

    def _differences(self) -> tuple[str, ...]:
        with open_run(self.run_dir) as reader:
            meta = reader.meta
        now = provenance() | {"device": str(self.trainer.device), "processes": "1"}
        unsteady = self.trainer.device.type == "cuda" and not self.trainer.config.train.deterministic
        names = [name for name in now if name.endswith("_version") or name in ("device", "processes", "git_commit")]
        return ("kernels that repeat only to rounding, without train.deterministic",) * unsteady + tuple(
            f"{name.removesuffix('_version').replace('_', ' ')} {meta[name]} then, {now[name]} now"
            for name in names
            if meta.get(name) and meta[name] != now[name]
        )

    def seconds_per_step(self, at: int) -> float:
        """Measured time of one iteration from the last checkpoint at or before ``at``: the median of five, after a
        warm-up."""
        self.trainer.restore(load_checkpoint(self.run_dir / "checkpoints", at))
        start = min(self.trainer.start, max(self.trainer.total - 6, 0))
        times = []
        for offset in range(6):
            began = time.perf_counter()
            self.run(start + offset, 1)
            times.append(time.perf_counter() - began)
        return float(np.median(times[1:]))

    def seconds_per_evaluation(self) -> float:
        """Measured time of one evaluation of the metric."""
        encoder = self.trainer.method.base_encoder
        float(self.trainer.monitor(encoder))  # warm-up: the first evaluation prepares the images
        began = time.perf_counter()
        float(self.trainer.monitor(encoder))
        return time.perf_counter() - began


KEEP = (
    "keep checkpoints next time: stablab train --keep-before-spikes, or --set train.checkpoint_every=N "
    "--set train.checkpoint_keep=N"
)
"""Advice in the message for a run without the required checkpoints."""
