"""One curve under many names gives the same dips; goals, scales and defaults are inferred from names."""

from __future__ import annotations

import numpy as np
import pytest

from stabilitylab.analysis.dips import noise_of
from stabilitylab.analysis.metrics import block_means, choose_metric, metric_of
from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.results import Dip, EvalCurve, RunAnalysis, RunSeries
from stabilitylab.errors import ConfigError, NoDataError
from stabilitylab.metrics import goal_of
from tests.synthetic import accuracy_curve, planted_run

DIPS = [(1000, 150, 0.25), (2500, 200, 0.3)]
ACCURACY = accuracy_curve(4000, seed=0, dips=DIPS)
UNKNOWN = np.zeros(len(ACCURACY.value), dtype=np.int64)


def judged(name: str, value: np.ndarray, samples: np.ndarray = UNKNOWN, **asked: str) -> RunAnalysis:
    planted = planted_run(seed=1, n=4000, dips=False).series
    return analyze_run(
        RunSeries("r", 4000, planted.layers, {name: EvalCurve(ACCURACY.iteration, value, samples)}), **asked
    )


def places(found: RunAnalysis) -> list[tuple[int, int, int | None]]:
    assert found.dips is not None
    return [(dip.start, dip.trough, dip.recovered) for dip in found.dips]


@pytest.mark.parametrize(
    ("name", "transform", "scale"),
    [
        ("knn_top1", lambda a: a, "fraction"),
        ("val_acc", lambda a: a, "fraction"),
        ("val/acc1", lambda a: 100 * a, "percent"),
        ("val_top1", lambda a: 100 * a, "percent"),
        ("eval_error", lambda a: 1 - a, "fraction"),
        ("val_loss", lambda a: 2 - a, "value"),
        ("val_perplexity", lambda a: np.exp(2 - a), "log"),
    ],
)
def test_one_curve_has_the_same_dips_under_every_name(name: str, transform, scale: str) -> None:  # type: ignore[no-untyped-def]
    expected = places(judged("knn_top1", ACCURACY.value))
    assert len(expected) == len(DIPS)
    found = judged(name, transform(ACCURACY.value))
    assert places(found) == expected
    assert found.metric is not None
    assert (found.metric.name, found.metric.scale) == (name, scale)
    assert [dip.depth for dip in found.dips or ()] == pytest.approx([0.25, 0.3], abs=0.09)


def test_a_percentage_with_samples_has_the_binomial_error_of_the_fraction() -> None:
    fraction = judged("val_acc", ACCURACY.value, ACCURACY.num_samples)
    percent = judged("val_acc", 100 * ACCURACY.value, ACCURACY.num_samples)
    errors = judged("val_err", 1 - ACCURACY.value, ACCURACY.num_samples)
    z = [dip.z for dip in fraction.dips or ()]
    assert len(z) == 2
    assert [dip.z for dip in percent.dips or ()] == pytest.approx(z)
    assert [dip.z for dip in errors.dips or ()] == pytest.approx(z)


def test_samples_do_not_make_a_loss_binomial() -> None:
    loss = judged("val_loss", 2 - ACCURACY.value, ACCURACY.num_samples)
    assert [dip.z for dip in loss.dips or ()] == [dip.z for dip in judged("val_loss", 2 - ACCURACY.value).dips or ()]


@pytest.mark.parametrize("name", ["val_loss", "perplexity", "val_acc"])
def test_noise_alone_makes_no_dips_where_no_sampling_error_is_known(name: str) -> None:
    found: list[Dip] = []
    for seed in range(100):
        value = accuracy_curve(3000, seed=seed).value
        value = {"val_loss": 3 - 2 * value, "perplexity": np.exp(3 - 2 * value), "val_acc": value}[name]
        curve = EvalCurve(np.arange(len(value)), value, np.zeros(len(value), dtype=int))
        analysis = analyze_run(RunSeries("r", 3000, (), {name: curve}), spikes=False, lag=False)
        found += analysis.dips or ()
    assert len(found) <= 5


def test_the_noise_of_a_trend_is_that_around_it() -> None:
    rng = np.random.default_rng(0)
    for n, factor in ((20, 1.8), (400, 1.3)):
        estimates = [float(np.median(noise_of(0.5 * np.arange(n) + rng.normal(0, 0.1, n), 1e-9))) for _ in range(200)]
        assert 0.1 <= np.median(estimates) < 0.1 * factor


@pytest.mark.parametrize(
    ("name", "goal"),
    [
        ("knn_top1", "max"), ("val_acc", "max"), ("valAcc@1", "max"), ("test/accuracy", "max"), ("eval_f1", "max"),
        ("val_knn_acc1", "max"), ("top5", "max"), ("val_loss", "min"), ("eval/loss", "min"), ("valLoss", "min"),
        ("perplexity", "min"), ("val_ppl", "min"), ("cross_entropy_loss", "min"), ("wer", "min"), ("bpb", "min"),
        ("accuracy_loss", "min"), ("score_of_things", "max"), ("quality", None), ("val_x", None),
    ],
)  # fmt: skip
def test_goals_from_names(name: str, goal: str | None) -> None:
    assert goal_of(name) == goal


def curves(**values: list[float]) -> dict[str, EvalCurve]:
    return {
        name: EvalCurve(np.arange(len(value)), np.array(value), np.zeros(len(value), dtype=int))
        for name, value in values.items()
    }


FOUR = [0.1, 0.2, 0.3, 0.4]


def test_the_default_is_knn_then_held_out_accuracy_then_held_out_loss_then_the_training_loss() -> None:
    loss = EvalCurve(np.arange(9), np.linspace(3, 1, 9), np.zeros(9, dtype=int))
    named = dict.fromkeys(["train_acc", "val_loss", "val_acc", "knn_top1", "quality"], FOUR)
    for expected in ("knn_top1", "val_acc", "train_acc", "val_loss"):
        assert choose_metric(curves(**named), loss).name == expected
        del named[expected]
    chosen = choose_metric(curves(**named), loss)  # the goal of "quality" is unknown
    assert (chosen.name, chosen.goal, chosen.chosen) == ("loss", "min", "no evaluation was recorded")
    assert choose_metric(curves(knn_top1=[0.1], val_acc=FOUR)).name == "val_acc"


def test_a_declared_goal_makes_any_curve_a_metric() -> None:
    quality = EvalCurve(np.arange(4), np.array(FOUR), np.zeros(4, dtype=int), goal="max")
    assert choose_metric({"quality": quality}).goal == "max"
    assert choose_metric(curves(quality=FOUR), metric="quality", goal="min").goal == "min"
    with pytest.raises(ConfigError, match="it is not clear from the name whether higher is better; set a goal"):
        choose_metric(curves(quality=FOUR), metric="quality")


def test_bad_metrics_are_named() -> None:
    with pytest.raises(
        ConfigError, match="metric val_loss: goal max contradicts its name, which means that lower is better"
    ):
        choose_metric(curves(val_loss=FOUR), metric="val_loss", goal="max")
    with pytest.raises(
        ConfigError, match="metric val_acc: goal min contradicts its name, which means that higher is better"
    ):
        metric_of("val_acc", curves(a=FOUR)["a"], "min")
    with pytest.raises(NoDataError, match="metric val_acc: all 3 values are missing or not finite"):
        choose_metric(curves(val_acc=[np.nan] * 3), metric="val_acc")
    with pytest.raises(NoDataError, match="no metric 'acc' was recorded; available: val_acc, val_loss"):
        choose_metric(curves(val_acc=FOUR, val_loss=FOUR), metric="acc")
    with pytest.raises(NoDataError, match="no metric has the required 3 evaluations; recorded: val_acc \\(2\\)"):
        choose_metric(curves(val_acc=[0.1, 0.2, np.nan]))


def test_what_was_not_measured_is_not_judged() -> None:
    found = analyze_run(planted_run(seed=1).series.__class__("r", 100, (), {}))
    assert found.dips is None
    assert found.metric is not None
    assert not found.metric.judged
    assert found.to_dict()["dips"] is None
    assert any(note.startswith("dips are not judged: ") for note in found.notes)


def test_block_means_keep_the_mean_and_the_last_iteration() -> None:
    value = np.arange(10.0)
    value[3] = np.nan
    means = block_means(EvalCurve(np.arange(10) * 5, value, np.zeros(10, dtype=int)), blocks=4)
    np.testing.assert_allclose(means.value, [1.0, 4.5, 7.0, 9.0])
    assert means.iteration.tolist() == [10, 25, 40, 45]


def test_a_rise_of_the_training_loss_is_found_where_nothing_was_evaluated() -> None:
    rng = np.random.default_rng(3)
    loss = 1 + 2 * np.exp(-np.arange(8000) / 1500) + rng.normal(0, 0.1, 8000)
    loss[5000:5400] += 0.4
    series = RunSeries("r", 8000, (), scalars={"loss": (np.arange(8000), loss)})
    (dip,) = analyze_run(series).dips or ()
    assert abs(dip.start - 5000) <= 40
    assert dip.recovered is not None
    assert abs(dip.recovered - 5400) <= 60
    assert dip.depth == pytest.approx(0.4, abs=0.1)
