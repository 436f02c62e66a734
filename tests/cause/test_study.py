"""A study of impulses, end to end on one tiny run, and the claims it decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stabilitylab.cause.claims import _judge_decay, _judge_reach, _judge_travel, _judge_weaker
from stabilitylab.cause.claims import judge as verdicts_of
from stabilitylab.cause.impulses import Impulse
from stabilitylab.cause.study import ImpulseStudy, load_impulse_study, run_impulse_study, write_impulse_study
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
    # Longer than was watched on both sides: nothing is known of the ratio.
    assert _judge_decay(claim, planted(2000, 1, 0), planted(1000, 1, 1)).verdict == "inconclusive"


def test_claims_about_reach_need_the_size_that_they_exclude() -> None:
    nothing = {"text": "none", "kicked": "b", "reaches": "input", "expect": "none", "smallest": 0.1}
    every = {"text": "all", "kicked": "b", "reaches": "output", "expect": "all", "smallest": 0.1}
    assert _judge_reach(nothing, planted(20, 0.0, 0)).verdict == "reproduced"
    assert _judge_reach(nothing, planted(20, 1.0, 0)).verdict == "contradicted"
    assert _judge_reach(every, planted(20, 1.0, 0)).verdict == "reproduced"
    # Reached, but by less than the size that counts.
    assert _judge_reach({**nothing, "smallest": 2.0}, planted(20, 1.0, 0)).verdict == "reproduced"
    last = planted(20, 1.0, 0)
    last = Impulse(last.order, last.size, last.of, last.at, {"c": last.differences["b"]}, {})
    behind = {**nothing, "reaches": "output", "kicked": "c"}
    assert "no layer responds on the output side of c" in _judge_reach(behind, last).reason


def travelling(ahead: float, back: float, seed: int) -> Impulse:
    """Kicks in the first and the last of three layers: the other end answers by ``ahead`` and by ``back``."""
    rng = np.random.default_rng(seed)
    shape = np.exp(-np.arange(20) / 6.0)[None, :, None]
    found = {"a": np.array([1.0, 0.1, ahead, 0.0]), "c": np.array([back, 0.1, 1.0, 0.0])}
    noise = {name: 0.02 * rng.standard_normal((12, 20, 4)) for name in found}
    return Impulse(
        ("a", "b", "c"), 0.5, "weights", tuple(range(12)), {k: shape * v + noise[k] for k, v in found.items()}, {}
    )


def test_the_direction_is_that_of_the_larger_response() -> None:
    output, back = ({"text": "way", "travels": way} for way in ("output", "input"))
    assert _judge_travel(output, travelling(0.5, 0.1, 0)).verdict == "reproduced"
    assert _judge_travel(back, travelling(0.5, 0.1, 0)).verdict == "contradicted"
    assert _judge_travel(back, travelling(0.1, 0.5, 0)).verdict == "reproduced"
    alike = _judge_travel(output, travelling(0.4, 0.4, 0))
    assert (alike.verdict, alike.reason[:10]) == ("contradicted", "both alike")
    nowhere = _judge_travel(output, travelling(0.0, 0.0, 3))
    assert (nowhere.verdict, nowhere.reason[:7]) == ("contradicted", "nowhere")
    one = travelling(0.5, 0.1, 0)
    few = Impulse(one.order, 0.5, "weights", (1, 2, 3), {k: v[:3] for k, v in one.differences.items()}, {})
    assert _judge_travel(output, few).verdict == "inconclusive"


def test_a_weaker_response_is_told_by_the_interval_of_the_difference() -> None:
    claim = {"text": "weaker", "kicked": "a"}
    strong, weak = travelling(0.5, 0.1, 0), travelling(0.2, 0.1, 1)
    assert _judge_weaker(claim, weak, strong).verdict == "reproduced"
    assert _judge_weaker(claim, strong, weak).verdict == "contradicted"
    assert _judge_weaker(claim, strong, travelling(0.5, 0.1, 2)).verdict == "inconclusive"


def test_the_study_in_the_repository_is_sound() -> None:
    study = load_impulse_study(ROOT / "experiments" / "cause" / "impulse.toml")
    assert len(study.runs) == 18
    seeds = {run.config.train.seed for run in study.runs}
    assert len(study.impulse["at"]) * study.impulse["kicks"] * len(seeds) >= 20


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
    verdicts = verdicts_of(study.claims, study.runs, found)
    assert [v.verdict for v in verdicts] == ["inconclusive"]  # two kicks are too few
    write_impulse_study(study, found, tmp_path / "out", verdicts)
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == ["directions.csv", "matrix.png", "metric.csv", "responses.csv", "verdicts.json"]


def test_a_study_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("[impulse]\nlayers = ['a']\nat = [1]\nkick = 3\n")
    with pytest.raises(
        ConfigError, match=r"\[impulse\] needs layers and at; its keys are layers, at, size, kicks, horizon"
    ):
        load_impulse_study(tmp_path / "s.toml")


@pytest.mark.parametrize("values", ["layers = ['a']\nat = 400", "layers = 'a'\nat = [1]", "layers = ['a']\nat = []"])
def test_layers_and_iterations_are_lists(tmp_path: Path, values: str) -> None:
    (tmp_path / "s.toml").write_text(f"[impulse]\n{values}\n")
    with pytest.raises(ConfigError, match=r"\[impulse\] (at|layers) must be a list"):
        load_impulse_study(tmp_path / "s.toml")


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ('text = "t"', "needs a text and one of reaches, decay_longer_than, weaker_than, travels"),
        ('text = "t"\nkicked = "b"\nreaches = "output"', "needs a kicked layer, one of a"),
        ('text = "t"\ntravels = "up"', "travels is output or input, not 'up'"),
    ],
)
def test_a_claim_that_cannot_be_decided_is_refused(tmp_path: Path, claim: str, message: str) -> None:
    (tmp_path / "s.toml").write_text(f"[impulse]\nlayers = ['a']\nat = [1]\n[[claim]]\n{claim}\n")
    with pytest.raises(ConfigError, match=message):
        load_impulse_study(tmp_path / "s.toml")
