"""A Hugging Face Trainer callback that records a run::

    trainer = Trainer(model, args, train_dataset=..., callbacks=[StabilityCallback(run="my_run")])

Needs the extra ``stabilitylab[huggingface]``.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.state import GradientState
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stabilitylab.attach.callbacks import Recording
from stabilitylab.attach.loop import LoopRecorder
from stabilitylab.recording.measurement import Measured


class StabilityCallback(TrainerCallback):
    """Records each optimizer step with the gradients as they were before the Trainer clipped them.

    The Trainer clips before it tells its callbacks, so gradients are measured at the end of the backward pass that
    completes them. With fp16 they are scaled there: they are measured after unscaling and clipping instead, and an
    event says so. Takes the options of `stabilitylab.record`. A training that crashed is closed when the next one
    begins, or when the program ends.
    """

    def __init__(self, run: str | None = None, **options: Any) -> None:
        self._recording = Recording({"run": run, **options})
        self._hooks: list[Any] = []
        self._forget()

    @property
    def recorder(self) -> LoopRecorder | None:
        return self._recording.recorder

    def _forget(self) -> None:
        self._stats: Measured | None = None
        self._losses: list[Tensor] = []
        self._normalised = False  # the model divides by the items of all accumulated batches: losses add up
        self._queued = False

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        self._remove_hooks()
        self._forget()
        model: nn.Module = context["model"]
        optimizer = getattr(context.get("optimizer"), "optimizer", context.get("optimizer"))
        recorder = self._recording.begin(model, optimizer, state.global_step, amp_skips=args.fp16)
        if args.fp16 and args.max_grad_norm:
            recorder.event("clipped", f"fp16: norms are those after clipping to {args.max_grad_norm}")
        if not args.fp16:
            self._hooks = [
                p.register_post_accumulate_grad_hook(self._in_backward) for p in model.parameters() if p.requires_grad
            ]
        self._hooks.append(model.register_forward_hook(self._after_forward, with_kwargs=True))

    def _after_forward(self, module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        self._queued = False  # a backward pass that failed never said that it ended
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if torch.is_tensor(loss) and torch.is_grad_enabled():
            self._losses.append(loss.detach().clone())
            self._normalised = named.get("num_items_in_batch") is not None

    def _in_backward(self, parameter: Tensor) -> None:
        if not self._queued and GradientState().sync_gradients:
            self._queued = True
            _at_the_end(self._after_backward)

    def _after_backward(self) -> None:
        # What DDP does at the end stands in the queue behind this, and averages the gradients: measure behind that.
        _at_the_end(self._measure)

    def _measure(self) -> None:
        self._queued = False
        if self.recorder is not None:
            self._stats = self.recorder.measure()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        losses, stats, normalised = self._losses, self._stats, self._normalised
        self._forget()
        if self.recorder is None or not self.recorder.has_gradient():
            return
        scheduler = context.get("lr_scheduler")
        lr = float(scheduler.get_last_lr()[0]) if scheduler is not None else None
        loss = torch.stack(losses).sum() / (1 if normalised else len(losses)) if losses else None
        self.recorder.step(loss=loss, lr=lr, stats=stats, iteration=self._recording.iteration(state.global_step))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        if self.recorder is None:
            return
        metrics = {k: float(v) for k, v in (context.get("metrics") or {}).items() if isinstance(v, int | float)}
        data: Any = getattr(context.get("eval_dataloader"), "dataset", None)
        self.recorder.log(metrics, num_samples=len(data) if hasattr(data, "__len__") else 0)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        self._remove_hooks()
        self._recording.end("finished")


def _at_the_end(call: Any) -> None:
    """Call it when the backward pass that is running has ended."""
    torch.autograd.Variable._execution_engine.queue_callback(call)
