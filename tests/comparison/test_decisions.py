"""Decisions against independently calculated intervals, and the error rates of sequential studies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from stabilitylab.comparison.claims import Claim, judge
from stabilitylab.comparison.decisions import decide, decide_in_turn, decide_share, exact_share_interval, look_levels


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.001, -0.002, 0.001, 0.0], "reproduced"),
        ([0.05, 0.06, 0.04, 0.05], "contradicted"),
        ([-0.05, -0.06, -0.04, -0.05], "contradicted"),
        ([0.008, 0.013, 0.009, 0.012], "inconclusive"),  # the interval holds 0.01: neither within nor beyond
        ([0.2, -0.2, 0.1, -0.1], "inconclusive"),
        ([0.0, 0.0, 0.0], "inconclusive"),
    ],
)
def test_equal_needs_the_interval_within_the_margin_on_both_sides(values: list[float], verdict: str) -> None:
    assert decide(np.array(values), "equal", 0.01).verdict == verdict


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (0, 20), (3, 10), (10, 10), (1, 17)])
def test_the_share_interval_is_exact(hits: int, n: int) -> None:
    """Each bound is where so many hits, or more, become as rare as the tail."""
    low, high = exact_share_interval(hits, n, 0.95)
    if hits:
        assert stats.binom.sf(hits - 1, n, low) == pytest.approx(0.025)
    else:
        assert low == 0
    if hits < n:
        assert stats.binom.cdf(hits, n, high) == pytest.approx(0.025)
    else:
        assert high == 1


@pytest.mark.parametrize(
    ("hits", "n", "direction", "verdict"),
    [
        (0, 20, "not_higher", "reproduced"),  # at most 0.168 with 0 of 20
        (0, 20, "lower", "reproduced"),
        (0, 10, "not_higher", "inconclusive"),  # 0.308
        (20, 20, "not_higher", "contradicted"),
        (20, 20, "higher", "reproduced"),
        (0, 20, "higher", "contradicted"),
        (0, 2, "lower", "inconclusive"),
    ],
)
def test_a_share_is_held_against_its_limit(hits: int, n: int, direction: str, verdict: str) -> None:
    values = np.array([1.0] * hits + [0.0] * (n - hits))
    assert decide_share(values, direction, 0.2).verdict == verdict


def rows(values: list[float], **more: Any) -> list[dict[str, Any]]:
    return [
        {"train.seed": seed, "mitigation": "none", "diverged": str(bool(v)), "final_knn": v} | more
        for seed, v in enumerate(values)
    ]


def test_a_claim_about_a_share_of_one_group_has_an_exact_interval() -> None:
    claim = Claim("no run diverges", "diverged", {"mitigation": "none"}, "not_higher", 0.2)
    few, many = judge(claim, rows([0.0] * 5)), judge(claim, rows([0.0] * 20))
    assert (few.verdict, many.verdict) == ("inconclusive", "reproduced")
    assert many.ci95 == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert many.reason == "0 of 20: the interval lies below 0.2"


@pytest.mark.parametrize(("direction", "smallest"), [("equal", 0.2), ("higher", 1.0)])
def test_a_claim_about_a_share_needs_a_limit_below_one(direction: str, smallest: float) -> None:
    values = {"text": "c", "metric": "diverged", "treated": {}, "direction": direction, "smallest": smallest}
    with pytest.raises(ValueError, match="a share must be higher or lower than a limit between 0 and 1"):
        Claim.from_dict(values)


def pairs(effects: list[float], dead: dict[str, int]) -> list[dict[str, Any]]:
    """Pairs of runs; the first ``dead[mitigation]`` of each group end below the untrained encoder."""
    return [
        {"train.seed": seed, "mitigation": name, "final_knn": 0.5 + shift * (name != "none")}
        | {"dead": str(seed < dead.get(name, 0))}
        for seed, shift in enumerate(effects)
        for name in ("none", "frozen-patch")
    ]


def test_dead_runs_decide_nothing() -> None:
    effects = [0.05, 0.06, 0.04, 0.05, 0.06]
    claim = Claim("c", "final_knn", {"mitigation": "frozen-patch"}, "higher", 0.01, baseline={"mitigation": "none"})
    assert judge(claim, pairs(effects, {})).verdict == "reproduced"
    assert judge(claim, pairs(effects, {"none": 1})).verdict == "reproduced"  # one of five
    found = judge(claim, pairs(effects, {"none": 2}))
    assert (found.verdict, found.reason) == (
        "dead",
        "2 of 5 runs of the baseline group end below the untrained encoder",
    )
    assert judge(claim, pairs(effects, {"frozen-patch": 5})).verdict == "dead"
    without = [{k: v for k, v in row.items() if k != "dead"} for row in pairs(effects, {"none": 5})]
    assert judge(claim, without).verdict == "reproduced"  # an old summary, which does not tell
    share = Claim("most runs die", "dead", {"mitigation": "none"}, "higher", 0.3)
    assert judge(share, pairs([0.0] * 9, {"none": 9})).verdict == "reproduced"  # the one claim that they decide


def test_seeds_in_turn_stop_at_the_first_look_that_decides() -> None:
    """At 5, 10, 15 and 20 seeds, the second with an interval of level 1 - 0.05 x 4 / 30, against scipy's."""
    claim = Claim("c", "final_knn", {"mitigation": "none"}, "higher", 0.01)
    values = [0.03, -0.01, 0.05, 0.0, 0.02, *[0.03 + 0.004 * (-1) ** i for i in range(5)], *[-1.0] * 10]
    found = judge(claim, rows(values), looks=(5, 10, 15, 20))
    assert (found.verdict, found.num_seeds, found.level) == ("reproduced", 10, pytest.approx(1 - 0.05 * 4 / 30))
    ten = np.array(values[:10])
    assert found.interval == pytest.approx(stats.t.interval(1 - 0.05 * 4 / 30, 9, ten.mean(), stats.sem(ten)))
    assert found.ci95 == pytest.approx(stats.t.interval(0.95, 9, ten.mean(), stats.sem(ten)))
    waiting = judge(claim, rows(values[:9]), looks=(5, 10, 15, 20))
    assert (waiting.verdict, waiting.num_seeds) == ("inconclusive", 5)
    early = judge(claim, rows(values[5:9]), looks=(5, 10, 15, 20))
    assert (early.verdict, early.reason, early.interval) == ("inconclusive", "4 of the 5 seeds of the first look", None)


def test_seeds_are_taken_in_the_order_of_numbers() -> None:
    claim = Claim("c", "final_knn", {"mitigation": "none"}, "higher", 0.01)
    table = rows([0.03 + 0.001 * i for i in range(12)])
    found = judge(claim, [{k: str(v) for k, v in row.items()} for row in table[::-1]], looks=(5, 12))
    assert found.difference == pytest.approx(np.mean([0.03 + 0.001 * i for i in range(5)]))


def test_looking_again_and_again_errs_no_more_often_than_stated() -> None:
    """2,000 studies with no effect: reproduced in at most 2.5%. At 95% at every look it would be more."""
    rng = np.random.default_rng(0)
    studies, looks = rng.normal(0.0, 0.02, (2000, 20)), (5, 10, 15, 20)
    in_turn = sum(decide_in_turn(x, looks, "higher", 0.01)[0].verdict == "reproduced" for x in studies)
    naive = sum(any(decide(x[:n], "higher", 0.01).verdict == "reproduced" for n in looks) for x in studies)
    assert in_turn / 2000 <= 0.025 + 2 * math.sqrt(0.025 * 0.975 / 2000)
    assert naive > 1.5 * in_turn


def test_the_looks_together_spend_the_error_that_one_may_make() -> None:
    assert look_levels(1) == pytest.approx((0.95,))
    for count in (2, 4, 9):
        spent = [1 - level for level in look_levels(count)]
        assert sum(spent) == pytest.approx(0.05)
        assert spent == sorted(spent)


def test_twenty_runs_without_a_failure_show_a_share_below_a_fifth() -> None:
    decision, used = decide_in_turn(np.zeros(20), (5, 10, 15, 20), "lower", 0.2, share=True)
    assert (decision.verdict, used) == ("reproduced", 20)
