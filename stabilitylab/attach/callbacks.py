"""Shared code of the framework callbacks: choosing the run that a training is recorded into."""

from __future__ import annotations

import json
import warnings
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from stabilitylab.attach.loop import LoopRecorder, record
from stabilitylab.errors import RunNotFound
from stabilitylab.metrics import is_binomial
from stabilitylab.store.location import find_run, runs_root


class Recording:
    """The recorder of one callback, across several trainings.

    A framework counts its own iterations. ``resume=True`` continues at the framework's current iteration, or starts a
    new run if there is none yet. A second training with the same callback continues the run if the framework continues,
    and starts a new run, ``my_run-2``, if the framework starts at iteration 0.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.recorder: LoopRecorder | None = None
        self._last = ""  # the run of the previous training
        self._ahead = 0  # iteration of the run minus iteration of the framework
        self._silent = False  # whether the warning about a step without a gradient was issued

    def begin(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        at: int,
        *,
        settings: dict[str, Any] | None = None,
        **defaults: Any,
    ) -> LoopRecorder:
        """Start recording a training at iteration ``at``. A run that a previous training left open is closed.
        ``settings``: those of the framework, saved along with the user's ``config``."""
        self.end("crashed")
        self._silent = False
        options = {**defaults, **self.options}
        options["config"] = {**_as_json(settings or {}), **(options.get("config") or {})}
        root = runs_root(options.get("runs_dir"))
        resume = options.pop("resume", False)
        if self._last and at:
            options["run"], resume = self._last, at
        elif self._last and not resume and options["run"] is not None:
            number = 2
            while (root / f"{options['run']}-{number}").exists():
                number += 1
            options["run"] = f"{options['run']}-{number}"
        elif resume is True:
            resume = _exists(root, options["run"]) and (at or True)
        recorder = record(model, optimizer, resume=resume, **options)
        self._ahead = recorder.iteration - at if recorder.iteration and not at else 0
        self.recorder, self._last = recorder, recorder.run
        return recorder

    def iteration(self, at: int) -> int:
        """The iteration of the run that corresponds to iteration ``at`` of the framework."""
        return at + self._ahead

    def may_step(self) -> bool:
        """Whether there is a gradient to record. Warns at the first step without one."""
        if self.recorder is None:
            return False
        if self.recorder.has_gradient():
            return True
        if not self._silent:
            self._silent = True
            text = (
                "an optimizer step is not recorded, because it had no gradient: there was no backward pass, or "
                "gradients were freed before they could be measured. If your engine computes gradient norms, pass them "
                "with rec.step(norms={...})"
            )
            self.recorder.event("no-gradient", text)
            warnings.warn(text, stacklevel=3)
        return False

    def log(self, metrics: dict[str, float], *, num_samples: int) -> None:
        """Record evaluations. ``num_samples`` applies to metrics that are a proportion of samples."""
        for name, value in metrics.items():
            if self.recorder is not None:
                self.recorder.log({name: value}, num_samples=num_samples if is_binomial(name) else 0)

    def end(self, status: str) -> None:
        recorder, self.recorder = self.recorder, None
        if recorder is not None:
            recorder.close(status)


def _as_json(settings: Any) -> Any:
    """Settings as plain JSON values; values of other types become text."""
    return json.loads(json.dumps(settings, default=str, skipkeys=True))


def _exists(root: Any, run: str | None) -> bool:
    if dist.is_available() and dist.is_initialized() and dist.get_rank():
        return True  # rank 0 decides
    try:
        return run is not None and find_run(root, run) is not None
    except RunNotFound:
        return False
