"""The page of a study, the figure of its lags, and studies that begin with a later seed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from stabilitylab.errors import ConfigError
from stabilitylab.studies.collect import LAGS, PROVENANCE, read_summary
from stabilitylab.studies.lag_figure import FIGURE, draw_lags
from stabilitylab.studies.page import PAGE, write_page
from stabilitylab.studies.study import load_study

STUDY = """
title = "Two rates"
paper = "The larger is unstable."
[base.data]
name = "digits"
[base.train]
iterations = 50
batch_size = 64
[sequential]
first = 3
step = 2
most = 5
start = 7
[grid]
mitigation = ["none", "frozen-patch"]
[[claim]]
text = "frozen ends higher"
metric = "final_knn"
treated = { mitigation = "frozen-patch" }
baseline = { mitigation = "none" }
direction = "higher"
smallest = 0.01
"""
LAG = ("group", "source", "target", "median_iterations", "p_value", "num_matched", "num_runs", "num_given", "verdict")


def study_file(folder: Path, text: str = STUDY) -> Path:
    path = folder / "two_rates.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_study_begins_with_the_seed_it_names(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path))
    assert (study.looks, study.first_seed) == ((3, 5), 7)
    assert sorted({run.config.train.seed for run in study.runs}) == [7, 8, 9, 10, 11]
    first_look = study.runs_of(study.claims, 3)
    assert sorted(run.config.train.seed for run in first_look) == [7, 7, 8, 8, 9, 9]
    with pytest.raises(ConfigError, match="sequential start = -1 is not a"):
        load_study(study_file(tmp_path, STUDY.replace("start = 7", "start = -1")))


def test_the_page_tells_regime_machine_rule_verdict_and_lags(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path))
    folder = tmp_path / "report"
    folder.mkdir()
    about = {"command": "stablab study two_rates.toml", "training_hours": 0.25, "machines": ["a processor, AVX2"]}
    (folder / PROVENANCE).write_text(json.dumps(about | {"trained_at_commits": ["0123456789abcdef"]}))
    rows = [
        {"run": f"{m}{seed}", "mitigation": m, "train.seed": seed, "final_knn": 0.5 + gain + seed / 1000}
        for seed in (7, 8, 9)
        for m, gain in (("none", 0.0), ("frozen-patch", 0.05 + seed / 1000))
    ]
    write_page(study, rows, folder)
    plain = (folder / PAGE).read_text(encoding="utf-8")
    assert "6 runs, 0.25 hours of training steps on a processor, AVX2; trained at 0123456789." in plain
    assert "looks at 3, 5 seeds" in plain
    assert "iterations 50" in plain
    assert "mitigation (none, frozen-patch)" in plain
    assert "| frozen ends higher | final_knn | +0.058 [" in plain
    assert "**reproduced** |" in plain
    assert "lag" not in plain

    with (folder / LAGS).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*LAG, "reason", "resolution", "low", "high"])
        writer.writerow(["none", "patch_embed", "blocks.0", 4, 0.002, 61, 3, 3, "first leads", "", 1, 2, 6])
        writer.writerow(["none", "patch_embed", "blocks.1", "", "", 1, 1, 3, "inconclusive", "few", 1, "", ""])
    draw_lags(folder, study.title)
    assert (folder / FIGURE).stat().st_size > 5_000
    write_page(study, rows, folder)
    told = (folder / PAGE).read_text(encoding="utf-8")
    assert "| none | patch_embed | blocks.0 | 4 | 2 to 6 | 0.002 | 61 | 3 of 3 | first leads |" in told
    assert f"]({FIGURE})" in told


def test_no_figure_without_a_lag(tmp_path: Path) -> None:
    draw_lags(tmp_path, "nothing")
    assert not (tmp_path / FIGURE).exists()


def test_the_summaries_in_the_repository_add_up() -> None:
    """Spikes beyond chance are spikes minus an expectation: by the length of the run, or the number of events in the
    mirrored series if it is larger."""
    for row in read_summary(Path(__file__).parents[2] / "reports" / "first_layer_spikes"):
        expected = int(row["spikes_first_layer"]) - float(row["excess_first_layer"])
        assert expected == pytest.approx(max(int(row["iterations"]) / 10_000, int(expected + 1e-6)), rel=1e-3)
