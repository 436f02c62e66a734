"""``stablab report`` on runs that another tool wrote, with anything in names and configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stabilitylab.cli import cli
from stabilitylab.store.schema import LayerRow
from stabilitylab.store.writer import RunWriter

ODD_CONFIG = {"mitigation": "x<b>", "train": 5, "optim": {"base_lr": "high"}, "more": {"k": ["<i>", None, 1]}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``zero``: not one iteration. ``odd``: NaN gradients, NaN losses, kNN without a value, a hostile configuration."""
    folder = tmp_path_factory.mktemp("runs")
    RunWriter.create(folder / "zero", config={}, meta={}, layers=[LayerRow(0, "a", 0, 1)]).close("stopped")
    layers = [LayerRow(0, "a\nb<script>", 0, 1), LayerRow(1, "雪'\"", 1, 1)]
    with RunWriter.create(folder / "odd", config=ODD_CONFIG, meta={}, layers=layers) as writer:
        iteration = np.arange(300)
        norms = np.where(iteration % 50 == 7, np.nan, 1 + iteration / 300)
        for layer in layers:
            ids = np.full(300, layer.layer_id)
            writer.append("layer_stats", {"iteration": iteration, "layer_id": ids, "grad_norm": norms})
        writer.append("iterations", {"iteration": iteration, "loss": np.full(300, np.nan)})
        at = iteration[::10]
        writer.append("evals", {"iteration": at, "metric": ["knn_top1"] * len(at), "value": [None] * len(at)})
        writer.close("stopped")
    return folder


@pytest.mark.parametrize("runs", [("zero",), ("odd",), ("zero", "odd")])
def test_odd_runs_have_a_report_that_says_so(root: Path, tmp_path: Path, runs: tuple[str, ...]) -> None:
    target = tmp_path / "report.html"
    target.write_text("<!doctype html>an older report")
    done = CliRunner().invoke(
        cli, ["report", *runs, "-o", str(target), "--runs-dir", str(root)], catch_exceptions=False
    )
    assert done.exit_code == 0
    page = target.read_text(encoding="utf-8")
    assert "No evaluation was recorded, so dips were not judged" in page
    assert "<script>x" not in page
    if "zero" in runs:
        assert "Nothing is recorded yet" in page
    if "odd" in runs:
        assert "Gradients were not finite from iteration 7 on." in page
        assert "a\nb&lt;script&gt;" in page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("kind", ["spikes", "heatmap"])
def test_odd_runs_have_figures(root: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "figure.pdf"
    done = CliRunner().invoke(
        cli, ["figure", "odd", "--kind", kind, "-o", str(target), "--runs-dir", str(root)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert target.read_bytes().startswith(b"%PDF")


def test_a_run_judged_by_its_training_loss_shows_it_once(tmp_path: Path) -> None:
    layers = [LayerRow(0, "a", 0, 1)]
    with RunWriter.create(tmp_path / "r", config={}, meta={}, layers=layers) as writer:
        iteration = np.arange(60)
        writer.append("layer_stats", {"iteration": iteration, "layer_id": 0 * iteration, "grad_norm": np.ones(60)})
        writer.append("iterations", {"iteration": iteration, "loss": np.exp(-iteration / 30)})
    target = tmp_path / "r.html"
    done = CliRunner().invoke(cli, ["report", "r", "-o", str(target), "--runs-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    page = target.read_text(encoding="utf-8")
    assert "<h2>Training loss</h2>" in page
    assert "<h2>Loss</h2>" not in page
