"""Does a spike come from the batch or from the state? A two-by-two experiment: the state of the spike or another one,
with the batches of the spike or others."""

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

SMALLEST = 2.0
"""A rise by less than this factor is not a spike."""
MEANING = {
    "data": "comes from its batches: most other states spike with them, and this state spikes less often with others",
    "state": "comes from its state: it spikes with most other batches, and these batches spike less often elsewhere",
    "both needed": "needs both: neither this state with other batches nor these batches from other states spike",
    "either": "has either as its cause: this state spikes with other batches, and these batches from other states",
    "neither": "needs neither its state nor its batches: other states with other batches spike as well",
    "inconclusive": "has no clear cause: the intervals of the shares allow more than one answer",
}


@dataclass(frozen=True)
class Cell:
    """One cell of the two-by-two table. ``heights``: log ratio of the largest norm to the usual one, one per repeat.
    ``spiked``: number of repeats that reach half the height of the spike. ``ci95``: Wilson interval of their share."""

    state: str
    data: str
    heights: tuple[float, ...]
    spiked: int
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Swap:
    """The result of the experiment on the spike of ``layer``.

    ``peak``: its iteration. ``height``: log ratio of its norm to the usual one. ``state_at``: iteration of the state
    that counts as that of the spike. ``verdict``: a key of `MEANING`.
    """

    layer: str
    peak: int
    height: float
    state_at: int
    cells: tuple[Cell, ...]
    verdict: str
    check: ReplayCheck

    def sentence(self) -> str:
        """The result as text."""
        shares = [f"{c.spiked} of {len(c.heights)} with {c.state} and {c.data}" for c in self.cells[1:]]
        return (
            f"The spike of {self.layer} at iteration {self.peak} (x{np.exp(self.height):.1f}) "
            f"{MEANING[self.verdict]} (spiked: {'; '.join(shares)})."
        )


def judge(own_state: Cell, own_data: Cell, neither: Cell) -> str:
    """The verdict from the shares of spikes.

    A state or batch is a cause if it spikes in most repeats and significantly more often than the cells it is compared
    with (95% interval of the difference). It is no cause if the interval of its share is below one half.
    """
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
    """Whether the share of spikes is significantly larger: Newcombe's 95% interval of the difference excludes 0."""
    p, q = one.spiked / len(one.heights), other.spiked / len(other.heights)
    return p - q > math.hypot(p - one.ci95[0], other.ci95[1] - q)


@dataclass(frozen=True)
class SwapPlan:
    """The planned experiment. ``others``: iterations of the other states, nearest to the spike last."""

    state_at: int
    length: int
    others: tuple[int, ...]
    iterations: int


def plan_swap(replay: Replay, at: int, repeats: int = 8, lead: int | None = None, gap: int = 20) -> SwapPlan:
    """Plan the experiment.

    ``lead``: take the state this many iterations before ``at``; by default that of the last checkpoint at or before it.
    ``gap``: other states are at least this many iterations older.

    Raises:
        ConfigError: the run has too few checkpoints.
    """
    replay.require([at], WINDOW + 1)
    state_at = at - (replay.distance(at) if lead is None else lead)
    replay.require([state_at])
    first = replay.checkpoints[0]
    if state_at - gap - first < 0 or state_at - gap < 1:
        raise ConfigError(
            f"run {replay.run_dir.name} has no checkpoint at least {gap} iterations before that at {state_at} to "
            f"compare with; {KEEP}"
        )
    # Spread the other states over the saved checkpoints; with few checkpoints, use each state once.
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
    """Cross the state of the spike at iteration ``at``, or an older state, with its batches, or other batches.

    Each cell except the original one is repeated ``repeats`` times, if the run has enough older checkpoints.

    Raises:
        ConfigError: the run cannot be replayed, or has no spike at ``at``.
    """
    replay = run_dir if isinstance(run_dir, Replay) else Replay(run_dir)
    plan = plan_swap(replay, at, repeats, lead)
    spike = find_spike(replay, at, layer)
    if spike.height < np.log(SMALLEST):
        raise ConfigError(
            f"iteration {at} of run {replay.run_dir.name} is not a spike: within {WINDOW} iterations, the gradient "
            f"norm of {spike.layer} rises to {np.exp(spike.height):.2f} times its usual level, less than "
            f"{SMALLEST:g}; choose an iteration that `stablab analyze` lists"
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
    if own_heights[0] < np.log(SMALLEST):
        raise ConfigError(
            f"the spike of {spike.layer} at iteration {spike.peak} does not recur when replayed here: the norm "
            f"rises to {np.exp(own_heights[0]):.2f} times the usual one, so the cause cannot be tested; use the "
            "machine of the run, or a checkpoint closer to the spike"
        )
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
    """A random first batch such that the batches do not overlap with ``window``, at any iteration of the run."""
    length = window[1] - window[0]
    starts = np.arange(max(replay.trainer.total, 4 * length))
    starts = starts[(starts + length <= window[0]) | (starts >= window[1])]
    return int(rng.choice(starts))
