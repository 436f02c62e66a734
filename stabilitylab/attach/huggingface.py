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

_COSTS = ("_runtime", "_per_second", "_time")
"""Runtime statistics of an evaluation, which are not metrics."""


class StabilityCallback(TrainerCallback):
    """Records each optimizer step with the gradients before clipping.

    The Trainer clips before it calls its callbacks, so gradients are measured at the end of the backward pass that
    completes them, or while they are computed if that pass frees them. With fp16, gradients are scaled at that point;
    they are measured after unscaling and clipping instead, and an event records this.

    Takes the options of `stabilitylab.record`. The run of a training that crashed is closed when the next training
    begins or the program ends.
    """

    def __init__(self, run: str | None = None, **options: Any) -> None:
        self._recording = Recording({"run": run, **options})
        self._hook: Any = None
        self._forget()

    @property
    def recorder(self) -> LoopRecorder | None:
        return self._recording.recorder

    def _forget(self) -> None:
        self._losses: list[Tensor] = []
        self._normalised = False  # the model divides by the items of all accumulated batches, so losses are summed

    def _remove_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        self._remove_hook()
        self._forget()
        model: nn.Module = context["model"]
        optimizer = getattr(context.get("optimizer"), "optimizer", context.get("optimizer"))
        recorder = self._recording.begin(
            model,
            optimizer,
            state.global_step,
            amp_skips=args.fp16,
            measure="step" if args.fp16 else "backward",
            settings={"training_arguments": args.to_dict()},
        )
        recorder.complete_when(lambda: bool(GradientState().sync_gradients))
        if args.fp16 and args.max_grad_norm:
            recorder.event("clipped", f"fp16: norms are measured after clipping to {args.max_grad_norm}")
        self._hook = model.register_forward_hook(self._after_forward, with_kwargs=True)

    def _after_forward(self, module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> None:
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if torch.is_tensor(loss) and torch.is_grad_enabled():
            if self.recorder is not None:
                self.recorder.starts_forward(loss)
            self._losses.append(loss.detach().clone())
            self._normalised = named.get("num_items_in_batch") is not None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        losses, normalised = self._losses, self._normalised
        self._forget()
        if self.recorder is None or not self._recording.may_step():
            return
        scheduler = context.get("lr_scheduler")
        lr = float(scheduler.get_last_lr()[0]) if scheduler is not None else None
        loss = torch.stack(losses).sum() / (1 if normalised else len(losses)) if losses else None
        self.recorder.step(loss=loss, lr=lr, iteration=self._recording.iteration(state.global_step))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        metrics = {k: float(v) for k, v in (context.get("metrics") or {}).items() if isinstance(v, int | float)}
        evaluated = {k: v for k, v in metrics.items() if k.startswith("eval") and not k.endswith(_COSTS)}
        data: Any = getattr(context.get("eval_dataloader"), "dataset", None)
        self._recording.log(evaluated, num_samples=len(data) if hasattr(data, "__len__") else 0)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **context: Any
    ) -> None:
        self._remove_hook()
        self._recording.end("finished")
