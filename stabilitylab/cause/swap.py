"""Was it the batch, or the state? Two by two: the spike's state or another, the spike's batches or others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stabilitylab.analysis.intervals import share_interval
from stabilitylab.cause.replay import KEEP, Replay, ReplayCheck
from stabilitylab.cause.spike import WINDOW, find_spike, height, usual_norm
from stabilitylab.errors import ConfigError

SMALLEST = 1.5
"""A norm that rises less than this many times its usual size is no spike to explain."""
MEANING = {
    "data": "the batches: they bring the spike from other states too, and this state does not bring it with others",
    "state": "the state: it brings the spike with other batches too, and these batches do not bring it from others",
    "both needed": "both together: neither this state with other batches nor these batches from other states bring it",
    "either": "either: this state brings the spike with other batches, and these batches bring it from other states",
    "neither": "neither: other states with other batches spike as well",
    "inconclusive": "not clear: the shares' intervals leave more than one answer",
}


@dataclass(frozen=True)
class Cell:
    """One cell of the two by two. ``heights``: log of the largest norm over the usual one, a repeat each; ``spiked``:
    how many reached half of the spike's height; ``ci95``: of that share (Wilson)."""

    state: str
    data: str
    heights: tuple[float, ...]
    spiked: int
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Swap:
    """``verdict``: data, state, both needed, either, neither or inconclusive. ``state_at``: the iteration whose state
    is the spike's; the spike is at ``peak`` in ``layer``, ``height`` above the usual norm on the log scale."""

    layer: str
    peak: int
    height: float
    state_at: int
    cells: tuple[Cell, ...]
    verdict: str
    check: ReplayCheck

    def sentence(self) -> str:
        """The result in words."""
        shares = [f"{c.spiked} of {len(c.heights)} with {c.state} and {c.data}" for c in self.cells[1:]]
        return (
            f"The spike of {self.layer} at iteration {self.peak} (x{np.exp(self.height):.1f}) needs "
            f"{MEANING[self.verdict]} ({'; '.join(shares)} spiked)."
            if self.verdict not in ("neither", "inconclusive", "either")
            else f"What brings the spike of {self.layer} at iteration {self.peak} (x{np.exp(self.height):.1f}) is "
            f"{MEANING[self.verdict]} ({'; '.join(shares)} spiked)."
        )


def judge(own_state: Cell, own_data: Cell, neither: Cell) -> str:
    """The verdict from the shares of spikes. A cause is told where it spikes in most repeats and more often than what
    it is compared with, by the 95% interval of the difference; an absence where the share's interval is below half."""
    high = {cell: cell.spiked > len(cell.heights) / 2 for cell in (own_state, own_data)}
    if neither.ci95[0] > 0.5:
        return "neither"
    if high[own_state] and not high[own_data] and _exceeds(own_state, own_data) and _exceeds(own_state, neither):
        return "state"
    if high[own_data] and not high[own_state] and _exceeds(own_data, own_state) and _exceeds(own_data, neither):
        return "data"
    if all(high.values()) and _exceeds(own_state, neither) and _exceeds(own_data, neither):
        return "either"
    return "both needed" if all(c.ci95[1] < 0.5 for c in (own_state, own_data, neither)) else "inconclusive"


def _exceeds(one: Cell, other: Cell) -> bool:
    """Whether the share of spikes is larger: Newcombe's 95% interval of the difference excludes 0."""
    p, q = one.spiked / len(one.heights), other.spiked / len(other.heights)
    return p - q > math.hypot(p - one.ci95[0], other.ci95[1] - q)


@dataclass(frozen=True)
class SwapPlan:
    """What will be run. ``others``: the iterations whose states stand in for the spike's, nearest last."""

    state_at: int
    length: int
    others: tuple[int, ...]
    iterations: int


def plan_swap(replay: Replay, at: int, repeats: int = 8, lead: int | None = None, gap: int = 20) -> SwapPlan:
    """ConfigError where the run keeps too little. ``lead``: the spike's state is that of so many iterations before
    ``at``; by default that of the last checkpoint at or before it. ``gap``: other states are at least so much older."""
    replay.require([at], WINDOW + 1)
    state_at = at - (replay.distance(at) if lead is None else lead)
    replay.require([state_at])
    first = replay.checkpoints[0]
    if state_at - gap - first < 0 or state_at - gap < 1:
        raise ConfigError(
            f"run {replay.run_dir.name} has no checkpoint at least {gap} iterations before that at {state_at}: "
            f"there is no other state to compare with; {KEEP}"
        )
    # Spread over what is kept; where little is, fewer states are repeated with other batches only once each.
    others = np.unique(np.linspace(first, state_at - gap, repeats).round().astype(int))
    length = at - state_at + WINDOW + 1
    steps = sum(replay.distance(int(t)) for t in others)
    total = length * (1 + repeats + 2 * len(others)) + steps + replay.distance(state_at)
    return SwapPlan(state_at, length, tuple(map(int, others)), total)


def swap_run(
    run_dir: Path | Replay,
    *,
    at: int,
    layer: str | None = None,
    repeats: int = 8,
    lead: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Swap:
    """The two by two of the spike at iteration ``at``: its state or an older one, its batches or others of the run.

    Each cell but the run's own is repeated, ``repeats`` times where the run keeps enough older states. Raises
    ConfigError where the run cannot be replayed, or has no spike there.
    """
    replay = run_dir if isinstance(run_dir, Replay) else Replay(run_dir)
    plan = plan_swap(replay, at, repeats, lead)
    spike = find_spike(replay, at, layer)
    if spike.height < np.log(SMALLEST):
        raise ConfigError(
            f"iteration {at} of run {replay.run_dir.name} is no spike: within {WINDOW} iterations {spike.layer} rises "
            f"to {np.exp(spike.height):.2f} times its usual norm, less than {SMALLEST:g}; name the iteration of a spike"
        )
    check = replay.check(plan.state_at)
    column = replay.names.index(spike.layer)
    rng = np.random.default_rng(seed)
    own_window = (plan.state_at, plan.state_at + plan.length)
    done, total = 0, 1 + repeats + 2 * len(plan.others)

    def outcome(state: dict[str, object], before: int, batches: int) -> float:
        nonlocal done
        trace = replay.future(state, plan.length, batches=batches)
        done += 1
        progress(done, total)
        return height(trace.norms[:, column], usual_norm(replay, spike.layer, before))

    own = replay.state_at(plan.state_at)
    own_heights = [outcome(own, at, plan.state_at)]
    state_heights = [outcome(own, at, _elsewhere(rng, replay, own_window)) for _ in range(repeats)]
    data_heights, other_heights = [], []
    for t in plan.others:
        state = replay.state_at(t)
        before = max(t, int(replay.recorded[0][0]) + 1)
        data_heights.append(outcome(state, before, plan.state_at))
        other_heights.append(outcome(state, before, _elsewhere(rng, replay, own_window)))
    bound = own_heights[0] / 2
    cells = (
        _cell("its state", "its batches", own_heights, bound),
        _cell("its state", "other batches", state_heights, bound),
        _cell("other states", "its batches", data_heights, bound),
        _cell("other states", "other batches", other_heights, bound),
    )
    return Swap(spike.layer, spike.peak, spike.height, plan.state_at, cells, judge(*cells[1:]), check)


def _cell(state: str, data: str, heights: list[float], bound: float) -> Cell:
    spiked = sum(h >= bound for h in heights)
    return Cell(state, data, tuple(heights), spiked, share_interval(spiked, len(heights)) or (0.0, 1.0))


def _elsewhere(rng: np.random.Generator, replay: Replay, window: tuple[int, int]) -> int:
    """The first of as many batches that do not meet the spike's: of any iteration, trained yet or not."""
    length = window[1] - window[0]
    starts = np.arange(max(replay.trainer.total, 4 * length))
    starts = starts[(starts + length <= window[0]) | (starts >= window[1])]
    return int(rng.choice(starts))
