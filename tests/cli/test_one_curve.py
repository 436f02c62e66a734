"""One curve under five names gives the same dips at every door: analyze, report, figure, compare, watch, runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stabilitylab.cli import cli
from stabilitylab.store.writer import LayerRow, RunWriter
from stabilitylab.studies.overview import draw_overview
from tests.synthetic import planted_run

FORMS = {
    "knn_top1": lambda a: a,
    "val_acc": lambda a: a,
    "val_top1": lambda a: 100 * a,
    "val_loss": lambda a: 2 - a,
    "perplexity": lambda a: np.exp(2 - a),
}
SHOWN = {"knn_top1": "kNN"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for each name, and a second one with a shifted curve, as another mitigation."""
    root = tmp_path_factory.mktemp("runs")
    planted = planted_run(seed=1).series
    curve = replace(planted.evals["knn_top1"])
    rows = [LayerRow(i, layer.name, layer.depth, 10) for i, layer in enumerate(planted.layers)]
    for name, form in FORMS.items():
        for suffix, shift, mitigation in (("", 0.0, []), ("-b", 0.02, ["frozen-patch"])):
            config = {"mitigation": mitigation, "train": {"seed": 1}}
            with RunWriter.create(root / f"{name}{suffix}", config=config, meta={}, layers=rows) as writer:
                for i, layer in enumerate(planted.layers):
                    ids = np.full(len(layer.iteration), i)
                    columns = {"iteration": layer.iteration, "layer_id": ids, "grad_norm": layer.grad_norm}
                    writer.append("layer_stats", columns)
                values = form(curve.value + shift)
                counts = curve.num_samples if name in ("knn_top1", "val_acc", "val_top1") else 0 * curve.num_samples
                named = np.full(len(values), name)
                evals = {"iteration": curve.iteration, "metric": named, "value": values, "num_samples": counts}
                writer.append("evals", evals)
    return root


def call(root: Path, *args: str) -> str:
    done = CliRunner().invoke(cli, [*args, "--runs-dir", str(root)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def analyses(runs: Path) -> dict[str, dict]:
    return {name: json.loads(call(runs, "analyze", name, "--format", "json")) for name in FORMS}


@pytest.mark.parametrize("name", FORMS)
def test_analyze(name: str, analyses: dict[str, dict]) -> None:
    found, expected = analyses[name]["dips"], analyses["knn_top1"]["dips"]
    assert len(expected) == 4  # as planted
    assert [(d["start"], d["trough"]) for d in found] == [(d["start"], d["trough"]) for d in expected]


@pytest.mark.parametrize("name", FORMS)
def test_report_and_figure(name: str, runs: Path, tmp_path: Path) -> None:
    call(runs, "report", name, "-o", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"4 {'rises of ' + name if name in ('val_loss', 'perplexity') else 'accuracy dips'}" in page
    call(runs, "figure", name, "--kind", "knn", "-o", str(tmp_path / "figure.svg"))
    drawn = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert SHOWN.get(name, name) in drawn
    assert name == "knn_top1" or "kNN" not in drawn


@pytest.mark.parametrize("name", FORMS)
def test_compare(name: str, runs: Path) -> None:
    found = json.loads(call(runs, "compare", name, f"{name}-b", "--format", "json"))
    assert found["metric"] == name
    assert {row["max_dip_depth"] > 0 for row in found["runs"]} == {True}
    text = call(runs, "compare", name, f"{name}-b")
    assert name == "knn_top1" or "kNN" not in text


@pytest.mark.parametrize("name", FORMS)
def test_watch_and_list(name: str, runs: Path) -> None:
    shown = call(runs, "watch", name, "--once")
    assert f"\n{SHOWN.get(name, name)} " in shown
    assert name == "knn_top1" or "kNN" not in shown
    rows = {row["run"]: row for row in json.loads(call(runs, "runs", "--format", "json"))}
    assert rows[name]["metric"] == name
    assert (rows[name]["knn_top1"] is None) == (name != "knn_top1")
    line = next(line for line in call(runs, "runs").splitlines() if line.startswith(f"{name} "))
    assert line.split()[-2:] == [name, f"{rows[name]['value']:.3f}"]


def test_the_configured_metric_wins(tmp_path: Path) -> None:
    config = {"analysis": {"metric": "val_loss"}}
    with RunWriter.create(tmp_path / "r", config=config, meta={}, layers=[LayerRow(0, "a", 0, 1)]) as writer:
        for i in range(4):
            columns = {"iteration": [i, i], "metric": ["knn_top1", "val_loss"], "value": [0.5, 2.0 + i]}
            writer.append("evals", columns)
    assert "val_loss" in call(tmp_path, "watch", "r", "--once")
    row = json.loads(call(tmp_path, "runs", "--format", "json"))[0]
    assert (row["metric"], row["value"]) == ("val_loss", 5.0)


def test_an_overview_without_knn_shows_the_judged_metric(tmp_path: Path) -> None:
    rows = [
        {"mitigation": m, "train.seed": s, "final_knn": "", "final": str(1.5 + s), "max_dip_depth": "0.1"}
        for m in ("none", "frozen-patch")
        for s in (0, 1)
    ]
    draw_overview(rows, "language", tmp_path / "overview.svg")
    drawn = (tmp_path / "overview.svg").read_text(encoding="utf-8")
    assert "final value of the judged metric" in drawn
    assert "kNN" not in drawn
