"""A study of impulses, end to end on one tiny run, and the claims it decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stabilitylab.cause.impulses import Impulse
from stabilitylab.cause.study import (
    ImpulseStudy,
    _judge_decay,
    _judge_reach,
    load_impulse_study,
    run_impulse_study,
    write_impulse_study,
)
from stabilitylab.cause.study import judge as verdicts_of
from stabilitylab.errors import ConfigError

ROOT = Path(__file__).parents[2]


def planted(tau: float, reach: float, seed: int) -> Impulse:
    """Kicks in the middle of three layers: all answer with time constant ``tau``, the first ``reach`` times as much."""
    rng = np.random.default_rng(seed)
    t = np.arange(80)
    values = np.exp(-t / tau)[None, :, None] * np.array([reach, 1.0, 0.8, 0.1])
    return Impulse(
        ("a", "b", "c"), 0.5, "weights", tuple(range(10)), {"b": values + 0.01 * rng.standard_normal((10, 80, 4))}, {}
    )


def test_claims_about_decay_are_decided_by_the_ratio() -> None:
    claim = {"text": "slower", "kicked": "b", "smallest": 2.0}
    assert _judge_decay(claim, planted(20, 1, 0), planted(5, 1, 1)).verdict == "reproduced"
    assert _judge_decay(claim, planted(5, 1, 0), planted(5, 1, 1)).verdict == "contradicted"
    assert _judge_decay(claim, planted(20, 1, 0), None).verdict == "not run"
    # Longer than was watched on both sides: nothing is known of the ratio.
    assert _judge_decay(claim, planted(2000, 1, 0), planted(1000, 1, 1)).verdict == "inconclusive"


def test_claims_about_reach_need_the_size_that_they_exclude() -> None:
    nothing = {"text": "none", "kicked": "b", "reaches": "input", "expect": "none", "smallest": 0.1}
    every = {"text": "all", "kicked": "b", "reaches": "output", "expect": "all", "smallest": 0.1}
    assert _judge_reach(nothing, planted(20, 0.0, 0)).verdict == "reproduced"
    assert _judge_reach(nothing, planted(20, 1.0, 0)).verdict == "contradicted"
    assert _judge_reach(every, planted(20, 1.0, 0)).verdict == "reproduced"


def test_the_studies_in_the_repository_are_sound_and_state_the_same_claims() -> None:
    small, whole = (
        load_impulse_study(ROOT / "experiments" / "cause" / f"{n}.toml") for n in ("impulse_small", "impulse")
    )
    assert small.claims == whole.claims
    assert (len(small.runs), len(whole.runs)) == (8, 18)
    assert len(whole.impulse["at"]) * whole.impulse["kicks"] >= 20


def test_a_study_runs_is_kept_and_is_collected(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(
        """
        base.data.limit = 100
        base.model = { img_size = 8, embed_dim = 16, depth = 1, num_heads = 2 }
        base.method = { hidden_dim = 16, out_dim = 8 }
        base.train = { iterations = 12, batch_size = 16, device = "cpu", checkpoint_every = 4, checkpoint_keep = 9 }
        base.eval.knn_every = 0
        [grid]
        seed = 0
        [impulse]
        layers = ["predictor"]
        at = [4]
        kicks = 2
        horizon = 6
        [[claim]]
        text = "it reaches"
        kicked = "predictor"
        reaches = "input"
        """
    )
    study = load_impulse_study(tmp_path / "tiny.toml")
    assert isinstance(study, ImpulseStudy)
    assert run_impulse_study(study, tmp_path / "runs", collect=True) == {}
    found = run_impulse_study(study, tmp_path / "runs")
    again = run_impulse_study(study, tmp_path / "runs", collect=True)
    (one,), (other,) = found.values(), again.values()
    np.testing.assert_array_equal(one.differences["predictor"], other.differences["predictor"])
    verdicts = verdicts_of(study, found)
    assert [v.verdict for v in verdicts] == ["inconclusive"]  # two kicks are too few
    write_impulse_study(study, found, tmp_path / "out", verdicts)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["matrix.png", "responses.csv", "verdicts.json"]


def test_a_study_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("[impulse]\nlayers = ['a']\nat = [1]\nkick = 3\n")
    with pytest.raises(
        ConfigError, match=r"\[impulse\] needs layers and at; its keys are layers, at, size, kicks, horizon"
    ):
        load_impulse_study(tmp_path / "s.toml")
