"""A Hugging Face Trainer callback that records a run::

    trainer = Trainer(model, args, train_dataset=..., callbacks=[StabilityCallback(run="my_run")])

Needs the extra ``stabilitylab[huggingface]``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stabilitylab.integrations.loop import LoopRecorder, record


class StabilityCallback(TrainerCallback):
    """Records each optimizer step with the gradients as they were before the Trainer clipped them.

    The Trainer clips before it tells its callbacks, so gradients are measured at the end of each backward pass
    (of an accumulation the last counts). With fp16 they are scaled there: they are measured after unscaling and
    clipping instead, and an event says so. Takes the options of `stabilitylab.record`.
    """

    def __init__(self, run: str | None = None, **options: Any) -> None:
        self.options = {"run": run, **options}
        self.recorder: LoopRecorder | None = None
        self._hooks: list[Any] = []
        self._stats: Tensor | None = None
        self._loss: Tensor | None = None
        self._queued = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        model: nn.Module = context["model"]
        optimizer = getattr(context.get("optimizer"), "optimizer", context.get("optimizer"))
        self.recorder = record(model, optimizer, **{"amp_skips": args.fp16, **self.options})
        if args.fp16 and args.max_grad_norm:
            self.recorder.event("clipped", f"fp16: norms are those after clipping to {args.max_grad_norm}")
        if not args.fp16:
            self._hooks = [
                p.register_post_accumulate_grad_hook(self._in_backward) for p in model.parameters() if p.requires_grad
            ]
        self._hooks.append(model.register_forward_hook(self._after_forward))

    def _after_forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if torch.is_tensor(loss) and torch.is_grad_enabled():
            self._loss = loss.detach()

    def _in_backward(self, parameter: Tensor) -> None:
        if not self._queued:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._after_backward)

    def _after_backward(self) -> None:
        self._queued = False
        if self.recorder is not None:
            self._stats = self.recorder.measure()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        if self.recorder is None:
            return
        scheduler = context.get("lr_scheduler")
        lr = float(scheduler.get_last_lr()[0]) if scheduler is not None else None
        self.recorder.step(loss=self._loss, lr=lr, stats=self._stats)
        self._stats = None

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        metrics = context.get("metrics") or {}
        if self.recorder is not None:
            self.recorder.log({k: float(v) for k, v in metrics.items() if isinstance(v, int | float)})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None
