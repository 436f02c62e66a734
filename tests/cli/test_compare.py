"""``stablab compare`` and the options of ``stablab analyze``, on runs written through the store."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stabilitylab.cli import cli
from stabilitylab.errors import ConfigError
from stabilitylab.store.writer import LayerRow, RunWriter
from tests.synthetic import planted_run

SEEDS = range(3)


def write(folder: Path, *, mitigation: str | None, seed: int, lr: float, method: str = "mocov3") -> str:
    """A run whose kNN is 5 points lower and whose spikes are there only without a mitigation."""
    planted = planted_run(seed=seed, n=1500, count=4 if mitigation is None else 1, dips=mitigation is None)
    name = f"{mitigation or 'none'}_{seed}_{lr:g}"
    (folder / name).mkdir(parents=True)
    layers = [LayerRow(i, x.name, x.depth, 10, True) for i, x in enumerate(planted.series.layers)]
    config = {
        "mitigation": [mitigation] if mitigation else [],
        "train": {"seed": seed},
        "optim": {"base_lr": lr},
        "method": {"name": method},
    }
    with RunWriter.create(folder / name, config=config, meta={}, layers=layers) as writer:
        for i, layer in enumerate(planted.series.layers):
            rows = {"iteration": layer.iteration, "layer_id": np.full(1500, i), "grad_norm": layer.grad_norm}
            writer.append("layer_stats", rows)
        curve = planted.series.evals["knn_top1"]
        value = curve.value - (0.05 + 0.2 * lr if mitigation is None else 0.002 * seed)
        rows = {"iteration": curve.iteration, "metric": "knn_top1", "value": value, "num_samples": curve.num_samples}
        writer.append("evals", rows)
    return name


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Three seeds, two learning rates, with and without a mitigation."""
    root = tmp_path_factory.mktemp("study") / "runs"
    runs = [write(root, mitigation=m, seed=s, lr=lr) for m in (None, "x") for s in SEEDS for lr in (0.1, 0.3)]
    return root, runs


@pytest.fixture
def stablab_in(study: tuple[Path, list[str]]) -> Callable[..., str]:
    def run(*args: str) -> str:
        done = CliRunner().invoke(cli, [*args, "--runs-dir", str(study[0])], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def test_compare_as_json(stablab_in: Callable[..., str], study: tuple[Path, list[str]]) -> None:
    answer = json.loads(stablab_in("compare", *study[1], "--format", "json"))
    assert (answer["schema"], answer["by"], answer["baseline"], len(answer["runs"])) == (1, "mitigation", "none", 12)
    effects = {row["metric"]: row for row in answer["effects"]}
    final = effects["final_knn"]
    assert final["verdict"] == "better"
    assert final["difference"] == pytest.approx(0.05 + 0.2 * 0.2 - 0.002, abs=0.02)
    assert final["ci95"][0] <= final["difference"] <= final["ci95"][1]
    assert final["num_seeds"] == 3
    assert "no p below 0.05 is possible" in final["warning"]
    assert effects["spikes_per_10k"]["difference"] < 0
    none, x = answer["lr_sensitivity"]
    assert (none["mitigation"], x["mitigation"]) == ("none", "x")
    assert none["mean"] == pytest.approx(0.02, abs=1e-6)  # 0.2 x (0.3 - 0.1), half of the rates
    assert x["mean"] == pytest.approx(0.0, abs=1e-6)
    assert {row["seeds"] for row in answer["power"]} >= {3, 5, 10}


def test_compare_as_text_and_csv(stablab_in: Callable[..., str], study: tuple[Path, list[str]]) -> None:
    text = stablab_in("compare", *study[1])
    for word in (
        "12 runs by mitigation, compared with none",
        "x minus none",
        "better",
        "sensitivity to the learning rate",
    ):
        assert word in text
    assert "power: probability that the 95% interval excludes 0" in text
    rows = list(csv.DictReader(io.StringIO(stablab_in("compare", *study[1], "--format", "csv"))))
    assert rows[0]["metric"] == "final_knn"
    assert float(rows[0]["ci95_low"]) <= float(rows[0]["difference"]) <= float(rows[0]["ci95_high"])


def test_compare_by_another_key(stablab_in: Callable[..., str], study: tuple[Path, list[str]]) -> None:
    plain = [run for run in study[1] if run.startswith("none")]
    answer = json.loads(stablab_in("compare", *plain, "--by", "optim.base_lr", "--format", "json"))
    assert answer["baseline"] == "0.1"
    (final,) = (row for row in answer["effects"] if row["metric"] == "final_knn")
    assert (final["mitigation"], final["num_seeds"]) == ("0.3", 3)
    assert final["difference"] == pytest.approx(-0.04, abs=1e-6)
    mixed = stablab_in("compare", plain[0], "x_0_0.1", "x_1_0.1", "--by", "train.seed")
    assert "the runs also differ in mitigation\n" in mixed  # without pairs there are no effects to confound
    mixed = stablab_in("compare", plain[0], "x_0_0.3", "--by", "optim.base_lr")
    assert "the runs also differ in mitigation, which confounds the effects" in mixed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["none_0_0.1"], "compare needs at least two runs"),
        (["none_0_0.1", "none_0_0.1"], "compare needs at least two runs"),
        (["none_0_0.1", "x_0_0.1", "--baseline", "y"], r"no run has mitigation 'y'; available: none, x"),
        (["none_0_0.1", "x_0_0.1", "--by", "optim.bse_lr"], r"key 'optim.bse_lr'; did you mean optim.base_lr"),
    ],
)
def test_what_cannot_be_compared(study: tuple[Path, list[str]], args: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(cli, ["compare", *args, "--runs-dir", str(study[0])], catch_exceptions=False)


def test_analyze_explains_and_takes_rules(stablab_in: Callable[..., str]) -> None:
    answer = json.loads(stablab_in("analyze", "none_0_0.1", "--explain", "--format", "json"))
    assert [account["start"] for account in answer["explain"]] == [e["start"] for e in answer["episodes"]]
    assert "Episode 1, iterations" in stablab_in("analyze", "none_0_0.1", "--explain")
    counts = {}
    for rule in ("olmo", "zscore", "ema"):
        text = stablab_in("analyze", "none_0_0.1", "--spikes", "--rule", rule)
        assert f"(rule {rule})" in text
        found = json.loads(stablab_in("analyze", "none_0_0.1", "--spikes", "--rule", rule, "--format", "json"))
        assert found["settings"]["rule"] == rule
        assert "lag" not in found
        counts[rule] = len(found["spikes"])
    assert counts["zscore"] > counts["olmo"]
    assert counts["ema"] > len(answer["spikes"])


def test_another_rate_and_ratio(stablab_in: Callable[..., str]) -> None:
    def spikes(*more: str) -> int:
        return len(json.loads(stablab_in("analyze", "none_0_0.1", "--spikes", *more, "--format", "json"))["spikes"])

    assert spikes("--false-alarms", "50", "--min-ratio", "1") > spikes() > spikes("--min-ratio", "9")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--false-alarms", "0"], "--false-alarms: must be above 0"),
        (["--false-alarms", "nan"], "--false-alarms: must be above 0"),
        (["--min-ratio", "0.5"], "--min-ratio: must be at least 1"),
        (["--rule", "olmo", "--false-alarms", "1"], "--false-alarms cannot be combined with --rule olmo"),
    ],
)
def test_options_that_make_no_sense(study: tuple[Path, list[str]], args: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(cli, ["analyze", "x_0_0.1", *args, "--runs-dir", str(study[0])], catch_exceptions=False)


@pytest.mark.parametrize(
    ("form", "opening", "row"),
    [
        ("md", "**Effect of each mitigation", "| x | final kNN top-1 |"),
        ("html", "<!doctype html>", "<td>x</td><td>final kNN top-1</td>"),
        ("latex", "% \\usepackage{booktabs}", "x & final kNN top-1 &"),
    ],
)
def test_the_forms_for_papers_hold_the_numbers_of_the_json(
    study: tuple[Path, list[str]], stablab_in: Callable[..., str], form: str, opening: str, row: str
) -> None:
    shown = stablab_in("compare", *study[1], "--format", form)
    assert shown.startswith(opening)
    assert row in shown
    effects = json.loads(stablab_in("compare", *study[1], "--format", "json"))["effects"]
    final = next(effect for effect in effects if effect["metric"] == "final_knn")
    for value in (final["difference"], *final["ci95"]):
        assert f"{100 * value:+.1f}".replace("+", "$+$" if form == "latex" else "+") in shown
