"""Claims about a pooled lag: decided by the interval over runs, never where the runs are several settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stabilitylab.comparison.claims import Claim, judge
from stabilitylab.comparison.pooled import RunOnsets, pool_lag
from stabilitylab.comparison.pooled_claims import pooled_columns


def claim(direction: str = "higher", **more: Any) -> Claim:
    values = {"text": "t", "metric": "pooled_lag", "treated": {"mitigation": "none"}, "direction": direction}
    return Claim.from_dict(values | {"smallest": 2.0} | more)


def rows(lag: int, *, seeds: int = 6, spread: int = 1, related: bool = True, **more: Any) -> list[dict[str, Any]]:
    """Runs of one setting, each with two spikes that reach the last block ``lag`` iterations later."""
    rng = np.random.default_rng([lag + 100, seeds])
    runs = []
    for _ in range(seeds):
        first = np.sort(rng.integers(100, 1000, 2))
        late = first + lag + rng.integers(-spread, spread + 1, 2) if related else rng.integers(100, 1000, 2)
        runs.append(RunOnsets(first, np.unique(late), 1200))
    found = pooled_columns(pool_lag(runs, group="g", source="patch_embed", target="blocks.1"))
    return [{"train.seed": str(s), "mitigation": "none", "run": f"r{s}", **found, **more} for s in range(seeds)]


def test_it_is_decided_by_the_interval_over_runs() -> None:
    follows = judge(claim(), rows(12))
    assert (follows.verdict, follows.num_seeds) == ("reproduced", 6)
    assert follows.difference is not None
    assert abs(follows.difference - 12) <= 1
    assert follows.ci95 is not None
    assert follows.ci95[0] <= 12 <= follows.ci95[1]
    assert judge(claim("not_higher"), rows(12)).verdict == "contradicted"
    assert judge(claim(), rows(0)).verdict == "contradicted"
    assert judge(claim("lower"), rows(-12)).verdict == "reproduced"


def test_what_the_runs_cannot_carry_is_inconclusive() -> None:
    assert "too few for a pooled lag" in judge(claim(), rows(12, seeds=2)).reason
    assert judge(claim(), rows(12, related=False)).verdict == "inconclusive"
    assert judge(claim(), []).reason == "no run of this group is finished"
    mixed = [*rows(12, **{"optim.base_lr": 0.1}), *rows(30, **{"optim.base_lr": 0.2})]
    assert judge(claim(), mixed).reason == "the runs have several settings; select one with `where`"
    assert judge(claim(where={"optim.base_lr": 0.2}), mixed).verdict == "reproduced"


def test_seeds_added_in_turn_decide_once() -> None:
    assert "4 of 6 seeds" in judge(claim(), rows(12, seeds=4), looks=(3, 6)).reason
    assert judge(claim(), rows(12), looks=(3, 6)).verdict == "reproduced"


def test_dead_runs_decide_nothing() -> None:
    assert judge(claim(), rows(12, dead="True")).verdict == "dead"


def test_a_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match="pooled_lag is about one group of runs"):
        claim(baseline={"mitigation": "frozen-patch"})
