"""The verdict of a claim against intervals calculated by hand, and its pairing against planted effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from stabilitylab.comparison.claims import Claim, judge


def rows(
    effects: Sequence[float], *, lrs: Sequence[float] = (0.1,), name: str = "frozen-patch"
) -> list[dict[str, Any]]:
    """A pair of runs a seed and learning rate: baselines differ widely, the effect is as given."""
    found = []
    for seed, effect in enumerate(effects):
        for lr in lrs:
            for mitigation, shift in (("none", 0.0), (name, effect)):
                value = 0.3 * math.sin(seed) + 5 * lr + shift
                found.append({"train.seed": seed, "optim.base_lr": lr, "mitigation": mitigation, "final_knn": value})
    return found


def claim(direction: str = "higher", smallest: float = 0.01, **more: Any) -> Claim:
    groups = {"treated": {"mitigation": "frozen-patch"}, "baseline": {"mitigation": "none"}}
    return Claim("c", "final_knn", direction=direction, smallest=smallest, **{**groups, **more})


@pytest.mark.parametrize(
    ("effects", "direction", "verdict"),
    [
        ([0.05, 0.06, 0.04, 0.05], "higher", "reproduced"),
        ([0.05, 0.06, 0.04, 0.05], "lower", "contradicted"),
        ([-0.05, -0.06, -0.04, -0.05], "lower", "reproduced"),
        ([-0.05, -0.06, -0.04, -0.05], "higher", "contradicted"),
        ([0.20, -0.10, 0.05, 0.01], "higher", "inconclusive"),  # the mean is above smallest, the interval holds 0
        ([0.001, 0.002, 0.001, 0.002], "higher", "contradicted"),  # surely above 0, surely too small
        ([0.001, 0.002, -0.001, 0.002], "not_higher", "reproduced"),
        ([0.05, 0.06, 0.04, 0.05], "not_higher", "contradicted"),
        ([0.20, -0.10, 0.05, 0.01], "not_higher", "inconclusive"),
        ([0.008, 0.013, 0.009, 0.012], "not_higher", "inconclusive"),  # above 0, but 0.01 is not shown
        ([-0.05, -0.06, -0.04, -0.05], "not_lower", "contradicted"),
        ([0.05, 0.06, 0.04, 0.05], "not_lower", "reproduced"),
        ([0.05, 0.06], "higher", "inconclusive"),
        ([], "higher", "inconclusive"),
        ([0.0, 0.0, 0.0], "not_higher", "inconclusive"),  # no spread: five runs without a dip are no proof
    ],
)
def test_the_interval_decides(effects: list[float], direction: str, verdict: str) -> None:
    assert judge(claim(direction), rows(effects)).verdict == verdict


def test_the_interval_is_students_over_seeds_not_runs() -> None:
    """Three learning rates of a seed are averaged: n stays the number of seeds."""
    effects = [0.05, 0.02, 0.08, 0.01, 0.04]
    found = judge(claim(), rows(effects, lrs=(0.1, 0.2, 0.4)))
    mean, error = np.mean(effects), stats.sem(effects)
    expected = stats.t.interval(0.95, 4, mean, error)
    assert found.num_seeds == 5
    assert found.difference == pytest.approx(mean)
    assert found.ci95 == pytest.approx(expected)


def test_runs_are_paired_by_all_else_that_varies() -> None:
    """A pair needs both runs at the same learning rate; what has no partner is left out."""
    table = rows([0.05, 0.06, 0.04], lrs=(0.1, 0.2))
    alone = [row for row in table if not (row["optim.base_lr"] == 0.2 and row["mitigation"] == "none")]
    assert judge(claim(), alone).difference == pytest.approx(0.05)
    nobody = [row for row in table if (row["optim.base_lr"] == 0.2) != (row["mitigation"] == "none")]
    assert judge(claim(), nobody).num_seeds == 0


def test_groups_may_be_told_apart_by_any_key_and_filtered() -> None:
    table = rows([0.05, 0.06, 0.04], lrs=(0.1, 0.2))
    by_lr = claim(treated={"optim.base_lr": 0.2}, baseline={"optim.base_lr": 0.1}, where={"mitigation": "none"})
    assert judge(by_lr, table).difference == pytest.approx(0.5)
    with_text = [{key: str(value) for key, value in row.items()} for row in table]  # as a CSV gives it
    assert judge(by_lr, with_text).difference == pytest.approx(0.5)


def test_without_a_baseline_the_metric_is_held_against_zero() -> None:
    table = [
        {"train.seed": s, "mitigation": "none", "lag": lag} for s, lag in enumerate([10, 12, 14, "", None, math.nan])
    ]
    found = judge(Claim("c", "lag", {"mitigation": "none"}, "higher", 2), table)
    assert (found.verdict, found.difference, found.num_seeds) == ("reproduced", 12, 3)


def test_flags_count_as_zero_and_one() -> None:
    names = ("none", "frozen-patch")
    table = [{"train.seed": s, "mitigation": m, "diverged": str(m == "none")} for s in range(3) for m in names]
    less = Claim("c", "diverged", {"mitigation": names[1]}, "lower", 0.2, baseline={"mitigation": names[0]})
    found = judge(less, table)
    assert (found.verdict, found.difference) == ("inconclusive", -1.0)
    assert found.reason == "all 3 seeds differ by the same amount, so there is no interval"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"directon": "higher"}, "claim 'c': unknown key directon"),
        ({"direction": "up"}, "claim 'c': direction 'up' is not one of higher, lower, not_higher, not_lower, equal"),
        ({"smallest": 0}, "claim 'c': smallest 0 is not a positive number"),
        ({"metric": None}, "claim 'c': missing key metric"),
    ],
)
def test_a_bad_claim_is_named(values: dict[str, Any], message: str) -> None:
    whole = {"text": "c", "metric": "final_knn", "treated": {}, "direction": "higher", "smallest": 0.01} | values
    with pytest.raises(ValueError, match=message):
        Claim.from_dict({key: value for key, value in whole.items() if value is not None})
