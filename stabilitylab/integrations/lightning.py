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

from stabilitylab.integrations.loop import LoopRecorder, record


class StabilityCallback(pl.Callback):
    """Records each optimizer step before clipping, with mixed precision unscaled, and what validation logs.

    Takes the options of `stabilitylab.record`. With several optimizers each step of each is an iteration.
    """

    def __init__(self, run: str | None = None, **options: Any) -> None:
        self.options = {"run": run, **options}
        self.recorder: LoopRecorder | None = None
        self._loss: Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        optimizer = trainer.optimizers[0] if trainer.optimizers else None
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        self.recorder = record(pl_module, optimizer, **{"amp_skips": scaled, **self.options})

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        if self.recorder is not None:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            loss = self._loss
            if loss is not None and scaler is not None:
                loss = loss / scaler.get_scale()  # Lightning scales before it calls on_before_backward
            self.recorder.step(loss=loss, lr=optimizer.param_groups[0]["lr"])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.recorder is None or trainer.sanity_checking:
            return
        values = {k: v for k, v in trainer.callback_metrics.items() if torch.as_tensor(v).numel() == 1}
        self.recorder.log({str(k): float(v) for k, v in values.items()})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close("stopped" if trainer.interrupted else "finished")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close("crashed" if isinstance(exception, Exception) else "stopped")

    def _close(self, status: str) -> None:
        if self.recorder is not None:
            self.recorder.close(status)
            self.recorder = None
