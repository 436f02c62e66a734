"""Dips by planted place, their link to spikes, and the level of chance."""

from __future__ import annotations

import numpy as np
import pytest

from stabilitylab.analysis.dips import LINK_WINDOW, find_dips, link_dips
from stabilitylab.analysis.results import EvalCurve
from tests.synthetic import accuracy_curve, spikes_at


@pytest.mark.parametrize("seed", range(5))
def test_planted_dips_are_found(seed: int) -> None:
    planted = [(1000, 150, 0.15), (2500, 200, 0.2)]
    dips = find_dips(accuracy_curve(4000, seed=seed, dips=planted))
    assert len(dips) == 2
    for dip, (start, length, depth) in zip(dips, planted, strict=True):
        assert abs(dip.start - start) <= 20
        assert dip.recovered is not None
        assert abs(dip.recovered - (start + length)) <= 20
        assert start <= dip.trough <= start + length
        assert dip.depth == pytest.approx(depth, abs=0.09)
        assert dip.area == pytest.approx(depth * length, rel=0.3)


def test_noise_alone_makes_no_dips() -> None:
    found = [d for s in range(100) for d in find_dips(accuracy_curve(3000, seed=s))]
    assert len(found) <= 3


def test_the_sampling_error_decides() -> None:
    value = np.array([0.8] * 10 + [0.7] + [0.8] * 10)
    few = EvalCurve(np.arange(21), value, np.full(21, 50))
    many = EvalCurve(np.arange(21), value, np.full(21, 5000))
    assert find_dips(few) == ()
    (dip,) = find_dips(many)
    assert (dip.start, dip.trough, dip.recovered) == (10, 10, 11)
    assert dip.z == pytest.approx(0.1 / np.sqrt(0.7 * 0.3 / 5000), rel=0.01)


def test_a_constant_curve_has_no_dip() -> None:
    at = np.arange(60)
    assert find_dips(EvalCurve(at, np.ones(60), np.zeros(60, int)), min_depth=0, binomial=False) == ()


def test_a_collapse_never_recovers() -> None:
    value = np.concatenate([np.linspace(0.3, 0.9, 30), np.full(30, 0.2)])
    (dip,) = find_dips(EvalCurve(np.arange(60) * 10, value, np.full(60, 400)))
    assert (dip.start, dip.recovered) == (300, None)
    assert dip.area > 0.5 * 290


def test_curves_too_short_or_not_finite() -> None:
    assert find_dips(EvalCurve(np.array([0, 1]), np.array([0.5, 0.1]), np.array([100, 100]))) == ()
    value = np.array([0.8, np.nan] * 10)
    assert find_dips(EvalCurve(np.arange(20), value, np.full(20, 100))) == ()


def test_a_dip_names_the_spike_before_it() -> None:
    curve = accuracy_curve(4000, seed=0, dips=[(1000, 150, 0.2), (2500, 150, 0.2)])
    dips = find_dips(curve, spikes_at([400, 960, 2500 + 300]))
    assert [d.after_spike.onset if d.after_spike else None for d in dips] == [960, None]


@pytest.mark.parametrize("step", [1, 10, 100, 400])
def test_between_two_evaluations_nobody_knows(step: int) -> None:
    """The dip begins at 1,205 and ends at 2,195; spikes open 2 iterations before it, or 5 after it began."""
    at = np.arange(0, 6000, step)
    value = np.where((at >= 1205) & (at < 2195), 0.5, 0.8)
    curve = EvalCurve(at, value, np.full(len(at), 1000))
    (dip,) = find_dips(curve)
    assert dip.began_after is not None
    assert dip.down_until is not None
    assert dip.recovered is not None
    assert dip.began_after < 1205 <= dip.start <= dip.began_after + step
    assert dip.down_until < 2195 <= dip.recovered <= dip.down_until + step
    before, after = (find_dips(curve, spikes_at([onset]))[0] for onset in (1203, 1210))
    # The order is claimed only where an evaluation lies between the spike and the dip.
    assert before.order_known == (step == 1)
    assert not after.order_known
    assert find_dips(curve, spikes_at([1205 - step - LINK_WINDOW - 1]))[0].after_spike is None


def test_the_chance_level_of_the_link_against_plain_shifting() -> None:
    n = 2000
    dips = find_dips(accuracy_curve(n, seed=2, dips=[(600, 100, 0.2), (1200, 100, 0.2)]))
    onsets = [150, 560, 1170, 1700]
    link = link_dips(dips, spikes_at(onsets), num_iterations=n)
    counts = []
    for shift in range(n):
        moved = [(o + shift) % n for o in onsets]
        counts.append(sum(any(d.earliest - LINK_WINDOW <= o <= d.trough for o in moved) for d in dips))
    assert (link.num_dips, link.num_linked) == (2, 2)
    assert link.expected_by_chance == pytest.approx(np.mean(counts))
    assert link.p_value == pytest.approx(np.mean(np.array(counts) >= 2))
