"""A Lightning callback that records a run::

    trainer = Trainer(callbacks=[StabilityCallback(run="my_run")])

Needs the extra ``stabilitylab[lightning]``.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from stabilitylab.attach.callbacks import Recording
from stabilitylab.attach.loop import LoopRecorder


class StabilityCallback(pl.Callback):
    """Records each optimizer step before clipping, with mixed precision unscaled, and what validation logs.

    Takes the options of `stabilitylab.record`. With several optimizers each step of each is an iteration, in which
    its parameters alone are measured. A step without any gradient leaves no row.
    """

    def __init__(self, run: str | None = None, **options: Any) -> None:
        self._recording = Recording({"run": run, **options})
        self._loss: Tensor | None = None

    @property
    def recorder(self) -> LoopRecorder | None:
        return self._recording.recorder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        optimizer = trainer.optimizers[0] if trainer.optimizers else None
        self._loss = None
        self._recording.begin(pl_module, optimizer, trainer.global_step, amp_skips=_scaler(trainer) is not None)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        # Lightning has divided by the number of accumulated batches: their sum is the mean.
        loss = loss.detach()
        self._loss = loss.clone() if self._loss is None else self._loss + loss

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        loss, self._loss = self._loss, None
        if self.recorder is None or not self.recorder.has_gradient():
            return
        scaler = _scaler(trainer)
        scale = getattr(scaler, "_scale", None)  # get_scale() would wait for the device
        still_scaled = scale is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        self.recorder.step(
            loss=loss if loss is None or scale is None else loss / scale,
            lr=optimizer.param_groups[0]["lr"],
            iteration=self._recording.iteration(trainer.global_step),
            grad_scale=scale if still_scaled else None,
            optimizer=optimizer if len(trainer.optimizers) > 1 else None,
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.recorder is None or trainer.sanity_checking:
            return
        values = {k: v for k, v in trainer.callback_metrics.items() if torch.as_tensor(v).numel() == 1}
        self.recorder.log({str(k): float(v) for k, v in values.items()}, num_samples=_validated(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._recording.end("stopped" if trainer.interrupted else "finished")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._recording.end("crashed" if isinstance(exception, Exception) else "stopped")


def _scaler(trainer: pl.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _validated(trainer: pl.Trainer) -> int:
    """How many samples validation saw; 0 where it cannot be told."""
    loaders: Any = trainer.val_dataloaders
    try:
        whole = trainer.num_val_batches == [len(loaders)]
        return len(loaders.dataset) if whole else 0
    except (TypeError, AttributeError):
        return 0
