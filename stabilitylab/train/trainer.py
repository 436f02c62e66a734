"""The training loop."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from stabilitylab.config import Config
from stabilitylab.data.batches import training_batches
from stabilitylab.data.datasets import ImageData, load_data
from stabilitylab.models.layers import Layer, group_layers
from stabilitylab.recording.recorder import Recorder
from stabilitylab.train.checkpoint import (
    Checkpoint,
    make_checkpoint,
    restore_checkpoint,
    save_checkpoint,
)
from stabilitylab.train.device import (
    compile_encoders,
    pick_device,
    prepare_convolutions,
    use_deterministic_kernels,
)
from stabilitylab.train.distributed import World, join
from stabilitylab.train.evaluate import KnnMonitor
from stabilitylab.train.interruption import Interruption
from stabilitylab.train.large_batch import CutStep
from stabilitylab.train.mitigations import configured
from stabilitylab.train.mitigations.applied import build_mitigated
from stabilitylab.train.nonfinite import LossWatch, all_finite
from stabilitylab.train.optim import build_optimizer, set_learning_rate, set_weight_decay
from stabilitylab.train.schedules import ema_momentum, learning_rate, weight_decay

_LOOK_EVERY = 20
"""Iterations between checks of the loss on an accelerator, because each check waits for the device."""
_MAX_SKIPS = 50
"""Training stops after this many consecutive skipped updates."""


@dataclass(frozen=True)
class Progress:
    """Progress for a callback. ``loss`` and ``knn_top1`` are the latest known values."""

    iteration: int
    total: int
    loss: float | None
    knn_top1: float | None


@dataclass(frozen=True)
class TrainResult:
    """``stopped`` is the reason why training ended early, or empty; ``interrupted`` is the signal that stopped it."""

    iterations: int
    knn_top1: float | None
    stopped: str = ""
    interrupted: str = ""


class Trainer:
    """A run that is ready to train: data, method with its mitigations, optimizer and schedules.

    All randomness comes from ``config.train.seed``: initialisation, data order and views. Runs that differ only in
    their mitigation start from the same weights and see the same batches. ``given`` is the original configuration,
    ``config`` the one after its mitigations. ``world``: the rank of this process; each process trains on its slice of
    every batch. ``stop``: the iteration at which training ends; the schedules still run to ``total``. ``protect``
    returns the iterations whose checkpoints must be kept. ``interruptible``: a signal stops training with a checkpoint.
    """

    def __init__(self, config: Config, world: World = World()) -> None:  # noqa: B008  (frozen)
        self.given = config
        config = configured(config)  # fails before the data is read
        self.config, self.world = config, world
        self.device = pick_device(config.train.device, world.local_rank)
        if config.train.deterministic:
            use_deterministic_kernels(self.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        join(world, self.device)
        self.data: ImageData = load_data(config.data)
        torch.manual_seed(config.train.seed)
        self.method, self.mitigations = build_mitigated(config, self.data.channels, self.device)
        self.optimizer = build_optimizer(self.method.parameters(), config.optim)
        self.batches = training_batches(config, self.data, self.device, (world.rank, world.size))
        self.monitor = KnnMonitor(config, self.data, self.device, (world.rank, world.size), self._autocast)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.train.amp == "fp16")
        per_epoch = self.batches.order.iterations_per_epoch
        self.iterations_per_epoch = per_epoch
        self.total = config.train.iterations or math.ceil(cast(float, config.train.epochs) * per_epoch)
        self.warmup = config.optim.warmup_iterations or round((config.optim.warmup_epochs or 0) * per_epoch)
        self.peak_lr = config.optim.base_lr * config.train.batch_size / 256
        self.start, self.stop = 0, self.total
        self.interruptible = False
        self.protect: Callable[[], Collection[int]] = tuple
        self._skipped, self._last_bad = 0, -2
        prepare_convolutions(self.method, self.device)
        if config.train.compile:
            compile_encoders(self.method, self.device)
        self.cut_step = CutStep(self.method, world, config.train.micro_batch, self._autocast)

    def layers(self) -> list[Layer]:
        """The layers to record, from input to output."""
        return group_layers(self.method, self.config.record.granularity)

    def trained_names(self) -> list[str]:
        """The names of the parameters in the optimizer, in its order."""
        names = {id(p): name for name, p in self.method.named_parameters()}
        return [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]

    def restore(self, state: Checkpoint, trained: Sequence[str] | None = None) -> None:
        """Load a checkpoint; `train` then starts at its iteration. ``trained``: the `trained_names` of the run that
        saved it, if they may differ."""
        names = None if trained is None else (trained, self.trained_names())
        restore_checkpoint(state, self.method, self.optimizer, self.scaler, names)
        self.mitigations.load_state_dict(state.get("mitigations", {}), self.device)
        self.start = state["iteration"]

    def state(self, iteration: int) -> Checkpoint:
        """A checkpoint before ``iteration``. It shares tensors with the trainer: copy or save them before the next
        step."""
        state = make_checkpoint(iteration, self.method, self.optimizer, self.scaler)
        state["mitigations"] = self.mitigations.state_dict()
        return state

    def train(
        self, recorder: Recorder, checkpoints: Path, progress: Callable[[Progress], None] = lambda _: None
    ) -> TrainResult:
        """Train to the end, or to a non-finite loss if ``train.on_nan`` is ``stop``.

        The recorder is flushed at the end, even after an exception.
        """
        knn_top1 = None
        stopped = ""
        iteration = self.start - 1
        # Reading a loss is free on the CPU. On an accelerator it waits, so all processes do it every few iterations.
        watch = LossWatch(1 if self.device.type == "cpu" else _LOOK_EVERY)
        self.method.train()
        interruption = Interruption(self.world, self.device, watch.every) if self.interruptible else None
        try:
            for iteration, views in enumerate(self.batches.iterate(self.start, self.stop), self.start):
                if self._evaluates(iteration):
                    knn_top1 = self._evaluate(recorder, iteration)
                loss = self.step(recorder, iteration, views)
                recorder.flush_if_due()
                stopped = self._judge(recorder, watch.note(iteration, loss))
                if stopped:
                    break
                interrupted = interruption.asked(iteration) if interruption else ""
                if interrupted and iteration + 1 < self.stop:
                    self._checkpoint(recorder, checkpoints, iteration + 1)
                    recorder.event(iteration + 1, "interrupted", interrupted)
                    return TrainResult(iteration + 1, knn_top1, f"interrupted by {interrupted}", interrupted)
                self._checkpoint_if_due(recorder, checkpoints, iteration + 1)
                progress(Progress(iteration + 1, self.total, watch.latest, knn_top1))
            done = iteration + 1
            stopped = stopped or self._judge(recorder, watch.look())
            if not stopped:
                if self.config.eval.knn_every:
                    knn_top1 = self._evaluate(recorder, done)
                self._checkpoint(recorder, checkpoints, done)
        finally:
            if interruption:
                interruption.close()
            self.mitigations.report(recorder.event)
            recorder.settle()
            recorder.flush()
        return TrainResult(done, knn_top1, stopped)

    def step(self, recorder: Recorder, iteration: int, views: list[Tensor]) -> Tensor:
        """Run one update. The order is that of the paper: EMA update before the keys. Gradients are recorded before any
        clipping."""
        started = time.perf_counter()
        scalars = self.before_gradient(iteration)
        loss = self.cut_step(views, self.scaler.scale, iteration)
        self.scaler.unscale_(self.optimizer)
        recorder.step(
            iteration,
            epoch=iteration / self.iterations_per_epoch,
            loss=loss,
            seconds=time.perf_counter() - started,
            images=self.config.train.batch_size,
            skipped=~all_finite(self._gradients()) if self.scaler.is_enabled() else None,
            **scalars,
        )
        self.method.before_update(iteration)
        goes_on = self.mitigations.before_update(iteration)
        self.mitigations.report_if_due(recorder.event)
        if goes_on and self._may_update(recorder, iteration, loss):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return loss

    def learning_rate(self, iteration: int) -> float:
        """The learning rate of the update at ``iteration``."""
        return learning_rate(iteration, self.total, self.peak_lr, self.warmup, self.config.optim.schedule)

    def before_gradient(self, iteration: int) -> dict[str, Any]:
        """Apply the schedules before the gradient of ``iteration`` is computed. Returns the values to record."""
        scalars: dict[str, Any] = {"lr": self.learning_rate(iteration)}
        set_learning_rate(self.optimizer, scalars["lr"])
        decay = self.config.optim
        if decay.weight_decay_end is not None:
            set_weight_decay(
                self.optimizer, weight_decay(iteration, self.total, decay.weight_decay, decay.weight_decay_end)
            )
        if self.method.uses_momentum_encoder:
            settings = self.config.method
            momentum = ema_momentum(iteration, self.total, settings.ema_momentum, settings.ema_schedule)
            scalars["ema_momentum"] = momentum
            self.method.update_momentum_encoder(momentum)
        return scalars

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.method.parameters() if p.grad is not None]

    def _may_update(self, recorder: Recorder, iteration: int, loss: Tensor) -> bool:
        """Whether to make the update. It is skipped if it would write NaN into the weights and this can be checked."""
        policy = self.config.train.on_nan
        if policy == "continue" or (policy == "stop" and self.device.type != "cpu"):
            return True
        value = loss.item()
        # A loss scaler checks the gradients itself.
        if math.isfinite(value) and (policy == "stop" or self.scaler.is_enabled() or all_finite(self._gradients())):
            self._skipped = 0
            return True
        if policy == "skip":
            what = "a gradient is not finite" if math.isfinite(value) else f"loss is {value}"
            recorder.event(iteration, "nonfinite", f"{what}; the update was skipped")
            self._skipped += 1
        return False

    def _judge(self, recorder: Recorder, bad: list[tuple[int, float]]) -> str:
        """Record non-finite losses, one event per consecutive stretch. Returns why training must stop, or nothing."""
        policy = self.config.train.on_nan
        if policy == "skip":
            too_many = f"{_MAX_SKIPS} consecutive updates were skipped: the loss or gradient is no longer finite"
            return too_many if self._skipped >= _MAX_SKIPS else ""
        for iteration, value in bad:
            if iteration != self._last_bad + 1:
                recorder.event(iteration, "nonfinite", f"loss is {value}")
            self._last_bad = iteration
        return f"the loss was {bad[0][1]} at iteration {bad[0][0]}" if bad and policy == "stop" else ""

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        types = {"bf16": torch.bfloat16, "fp16": torch.float16}
        amp = self.config.train.amp
        return torch.autocast(self.device.type, types[amp]) if amp in types else contextlib.nullcontext()

    def _evaluates(self, iteration: int) -> bool:
        every = self.config.eval.knn_every
        return every > 0 and iteration % every == 0

    def _evaluate(self, recorder: Recorder, iteration: int) -> float | None:
        """Evaluate in all processes; only the main process records the results."""
        value = self.monitor(self.method.base_encoder).item()
        if not self.world.main:
            return value
        recorder.log(iteration, "knn_top1", value, self.monitor.num_samples)
        for name, number in self.monitor.statistics(self.method.base_encoder).items():
            recorder.scalar(iteration, name, number)
        return value

    def _checkpoint_if_due(self, recorder: Recorder, folder: Path, iteration: int) -> None:
        every = self.config.train.checkpoint_every
        if every and iteration % every == 0 and iteration < self.total:
            self._checkpoint(recorder, folder, iteration)

    def _checkpoint(self, recorder: Recorder, folder: Path, iteration: int) -> None:
        """Save a checkpoint after writing all rows before it to disk, so that a resumed run lacks no rows."""
        if not self.world.main:
            return
        self.mitigations.report(recorder.event)
        recorder.settle()
        recorder.flush(wait=True)
        if not all_finite(self.method.parameters()):
            recorder.event(iteration, "checkpoint-failed", "a weight is not finite: the previous checkpoint is kept")
            return
        try:
            path = save_checkpoint(folder, self.state(iteration), self.config.train.checkpoint_keep, self.protect())
        except OSError as error:  # a full disk must not end the training
            recorder.event(iteration, "checkpoint-failed", str(error.strerror))
            warnings.warn(f"no checkpoint at iteration {iteration}: {error.strerror}; training continues", stacklevel=2)
        else:
            recorder.event(iteration, "checkpoint", path.name)
