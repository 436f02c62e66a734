"""Apply the mitigations of a run during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from stabilitylab.config import Config
from stabilitylab.methods import build_method
from stabilitylab.methods.base import Method
from stabilitylab.train.mitigations import parse_mitigations
from stabilitylab.train.mitigations.stages import State

REPORT_EVERY = 200
"""Updates summarised in one event, since clipping may act in every update."""

Event = Callable[[int, str, str], None]
"""``event(iteration, kind, detail)``."""


class AppliedMitigations:
    """Applies the mitigations of a run. Its creation applies the ``model`` stage. The effects of the later stages are
    collected on the device and reported in one event per mitigation and ``REPORT_EVERY`` updates."""

    def __init__(self, method: Method, names: tuple[str, ...] | list[str]) -> None:
        self.method = method
        self.given = parse_mitigations(names)
        self.states: dict[str, State] = {item.text: {} for item in self.given}
        self._factors: dict[str, list[Tensor]] = {item.text: [] for item in self.given if item.entry.gradient}
        self._skipped: dict[str, list[int]] = {item.text: [] for item in self.given if item.entry.update}
        self._first: int | None = None
        self._last = 0
        for item in self.given:
            if item.entry.model is not None:
                item.entry.model(method, item.value)

    @torch.no_grad()
    def before_update(self, iteration: int) -> bool:
        """Apply the ``gradient`` and ``update`` stages in the given order. Returns False to skip the update."""
        if self._first is None:
            self._first = iteration
        self._last = iteration
        goes_on = True
        for item in self.given:
            if item.entry.gradient is not None:
                self._factors[item.text].append(item.entry.gradient(self.method, item.value, self.states[item.text]))
            elif item.entry.update is not None and bool(
                item.entry.update(self.method, item.value, self.states[item.text])
            ):
                self._skipped[item.text].append(iteration)
                goes_on = False
        return goes_on

    def report_if_due(self, event: Event) -> None:
        if self._first is not None and self._last - self._first + 1 >= REPORT_EVERY:
            self.report(event)

    def report(self, event: Event) -> None:
        """Record what the mitigations did since the last report, if anything."""
        if self._first is None:
            return
        seen = self._last - self._first + 1
        where = f"of {seen} updates from iteration {self._first}"
        for text, factors in self._factors.items():
            values = torch.stack(factors)
            clipped = int((values < 1).sum())
            if clipped:
                event(self._last, "clip", f"{text} clipped {clipped} {where}, at most to {float(values.min()):.3g}")
            factors.clear()
        for text, iterations in self._skipped.items():
            if iterations:
                named = ", ".join(map(str, iterations[:20])) + (", ..." if len(iterations) > 20 else "")
                event(self._last, "skip", f"{text} skipped {len(iterations)} {where}: {named}")
            iterations.clear()
        self._first = None

    def state_dict(self) -> dict[str, State]:
        """The states of the mitigations that have one."""
        return {text: dict(state) for text, state in self.states.items() if state}

    def load_state_dict(self, states: dict[str, State], device: torch.device) -> None:
        """Load states. A mitigation without a saved state, such as one added in a branch, starts fresh."""
        for text in self.states:
            self.states[text] = {name: value.to(device) for name, value in states.get(text, {}).items()}


def build_mitigated(config: Config, channels: int, device: torch.device) -> tuple[Method, AppliedMitigations]:
    """Build the method of a `configured` configuration on ``device`` and apply its mitigations."""
    method = cast(Method, build_method(config, channels)).to(device)
    return method, AppliedMitigations(method, config.mitigation)
