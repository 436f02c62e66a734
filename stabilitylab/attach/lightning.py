"""A Lightning callback that records a run::

    trainer = Trainer(callbacks=[StabilityCallback(run="my_run")])

Needs the extra ``stabilitylab[lightning]``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from stabilitylab.attach.callbacks import Recording
from stabilitylab.attach.loop import LoopRecorder


class StabilityCallback(pl.Callback):
    """Records each optimizer step, with gradients unscaled and before clipping, and the metrics that validation logs.

    Takes the options of `stabilitylab.record`. With several optimizers, each step of each optimizer is an iteration in
    which only its parameters are measured. With manual optimization, which may clip before the step or step the raw
    optimizers, gradients are measured at the end of the backward pass. A step without any gradient is not recorded; the
    first one issues a warning.
    """

    def __init__(self, run: str | None = None, **options: Any) -> None:
        self._recording = Recording({"run": run, **options})
        self._loss: Tensor | None = None
        self._announced = False  # whether Lightning has announced the current step
        self._hooks: list[Any] = []

    @property
    def recorder(self) -> LoopRecorder | None:
        return self._recording.recorder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._remove_hooks()
        optimizer = trainer.optimizers[0] if trainer.optimizers else None
        self._loss = None
        scaled = _scaler(trainer) is not None
        self._recording.begin(
            pl_module,
            optimizer,
            trainer.global_step,
            amp_skips=scaled,
            settings={"hparams": dict(pl_module.hparams)} if pl_module.hparams else None,
        )
        if not pl_module.automatic_optimization and not scaled:
            self._hooks = [
                hook
                for one in trainer.optimizers
                for hook in (
                    one.register_step_pre_hook(self._begins),
                    one.register_step_post_hook(partial(self._ends, trainer, pl_module)),
                )
            ]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        if self.recorder is not None:
            self.recorder.starts_forward(loss)
        # Lightning has divided by the number of accumulated batches, so the sum is the mean.
        loss = loss.detach()
        self._loss = loss.clone() if self._loss is None else self._loss + loss

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self._announced = True
        loss, self._loss = self._loss, None
        if self.recorder is None or not self._recording.may_step():
            return
        scaler = _scaler(trainer)
        scale = getattr(scaler, "_scale", None)  # get_scale() would wait for the device
        still_scaled = scale is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        several = optimizer if len(trainer.optimizers) > 1 else None
        iteration = self._recording.iteration(trainer.global_step)
        if iteration < self.recorder.iteration and pl_module.automatic_optimization:
            self.recorder.again(several)  # SAM's second pass
            return
        self.recorder.step(
            loss=loss if loss is None or scale is None else loss / scale,
            lr=optimizer.param_groups[0]["lr"],
            iteration=max(iteration, self.recorder.iteration),
            grad_scale=scale if still_scaled else None,
            optimizer=several,
        )

    def _begins(self, *_: Any) -> None:
        self._announced = False

    def _ends(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer, *_: Any) -> None:
        """Handle the step of an optimizer that Lightning did not announce."""
        if not self._announced:
            self.on_before_optimizer_step(trainer, pl_module, optimizer)

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.recorder is None or trainer.sanity_checking:
            return
        logged = _logged_in_validation(trainer)
        values = {str(k): v for k, v in trainer.callback_metrics.items() if k in logged}
        validated = {k: float(v) for k, v in values.items() if torch.as_tensor(v).numel() == 1}
        self._recording.log(validated, num_samples=_validated(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._remove_hooks()
        self._recording.end("stopped" if trainer.interrupted else "finished")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._remove_hooks()
        self._recording.end("crashed" if isinstance(exception, Exception) else "stopped")


def _logged_in_validation(trainer: pl.Trainer) -> set[str]:
    """The metrics that validation logs, without the training metrics that Lightning stores in the same place."""
    try:
        results: Any = trainer.fit_loop.epoch_loop.val_loop._results
        return set(results.metrics(on_step=False)["callback"])
    except (
        AttributeError,
        KeyError,
        TypeError,
    ):  # a private attribute that may change: fall back to metrics that training does not log
        return {name for name in map(str, trainer.callback_metrics) if not name.startswith("train")}


def _scaler(trainer: pl.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _validated(trainer: pl.Trainer) -> int:
    """Number of validation samples; 0 if unknown."""
    loaders: Any = trainer.val_dataloaders
    try:
        whole = trainer.num_val_batches == [len(loaders)]
        return len(loaders.dataset) if whole else 0
    except (TypeError, AttributeError):
        return 0
