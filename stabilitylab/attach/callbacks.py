"""What the callbacks of training frameworks share: which run a training goes into."""

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
    """The recorder of one callback, from one training to the next.

    A framework counts its own iterations. ``resume=True`` goes on where the framework stands, and starts a new run
    where there is none yet. A second training with one callback goes on with its run if the framework goes on, and is
    a run of its own, ``my_run-2``, if it begins anew.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.recorder: LoopRecorder | None = None
        self._last = ""  # the run of the training before
        self._ahead = 0  # the run's iteration less the framework's
        self._silent = False  # whether a step without a gradient was told

    def begin(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        at: int,
        *,
        settings: dict[str, Any] | None = None,
        **defaults: Any,
    ) -> LoopRecorder:
        """Record a training that stands at iteration ``at``. What a training before left open is closed. ``settings``:
        the framework's own, kept beside the user's ``config``."""
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
        """The run's iteration where the framework stands at ``at``."""
        return at + self._ahead

    def may_step(self) -> bool:
        """Whether there is a gradient to record. The first step without one is a warning."""
        if self.recorder is None:
            return False
        if self.recorder.has_gradient():
            return True
        if not self._silent:
            self._silent = True
            text = (
                "an optimizer step came without a gradient that could be measured, and is not recorded: another part "
                "of the training freed it. rec.step(norms={...}) takes norms that your engine computes"
            )
            self.recorder.event("no-gradient", text)
            warnings.warn(text, stacklevel=3)
        return False

    def log(self, metrics: dict[str, float], *, num_samples: int) -> None:
        """Evaluations. ``num_samples`` counts where a metric is a share of the samples."""
        for name, value in metrics.items():
            if self.recorder is not None:
                self.recorder.log({name: value}, num_samples=num_samples if is_binomial(name) else 0)

    def end(self, status: str) -> None:
        recorder, self.recorder = self.recorder, None
        if recorder is not None:
            recorder.close(status)


def _as_json(settings: Any) -> Any:
    """Settings as JSON can hold them; other values as text."""
    return json.loads(json.dumps(settings, default=str, skipkeys=True))


def _exists(root: Any, run: str | None) -> bool:
    if dist.is_available() and dist.is_initialized() and dist.get_rank():
        return True  # rank 0 decides
    try:
        return run is not None and find_run(root, run) is not None
    except RunNotFound:
        return False
