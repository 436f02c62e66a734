"""``stablab figure`` as a user runs it, on an imported run with planted spikes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from stabilitylab.cli import cli
from tests.cli.conftest import Stablab
from tests.synthetic import planted_grads_csv


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``tmp_path`` with the run ``held`` in ``runs/``: 12 planted spikes a layer, kNN with dips."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STABLAB_RUNS", raising=False)
    planted = planted_grads_csv(tmp_path / "grads.csv")
    curve = planted.series.evals["knn_top1"]
    rows = [f"{i},knn_top1,{v},400" for i, v in zip(curve.iteration.tolist(), curve.value.tolist(), strict=True)]
    (tmp_path / "scalars.csv").write_text("\n".join(["iteration,name,value,num_samples", *rows]) + "\n")
    arguments = ["import", "csv", "--grads", "grads.csv", "--scalars", "scalars.csv", "--name", "held"]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    return tmp_path


def figure(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["figure", "held", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_figure_and_its_table(runs: Path, stablab: Stablab) -> None:
    assert stablab("figure", "held", "--kind", "lag", "-o", "lag.pdf").stdout == "figure: lag.pdf\n"
    assert (runs / "lag.pdf").read_bytes().startswith(b"%PDF")
    figure("--kind", "knn", "--width", "double", "-o", "knn.svg")
    assert b"<svg" in (runs / "knn.svg").read_bytes()
    figure("--kind", "heatmap", "--format", "png", "-o", "heat")
    assert (runs / "heat").read_bytes().startswith(b"\x89PNG")
    table = figure("--kind", "lag", "--latex")
    assert "predictor & 4 & 20 & 20 to 20 & 12 \\\\" in table
    assert {path.name for path in runs.iterdir()} == {"grads.csv", "scalars.csv", "runs", "lag.pdf", "knn.svg", "heat"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "knn"), "a figure needs an output file; use -o FILE"),
        (("--kind", "knn", "-o", "missing/x.pdf"), "cannot write missing/x.pdf: choose a file in an existing folder"),
        (
            ("--kind", "knn", "-o", "x.html"),
            "unknown format of x.html; use the extension .pdf, .svg or .png, or set --format",
        ),
        (("--kind", "compare", "-o", "x.pdf"), "a comparison needs at least two runs"),
        (("--kind", "lag", "--latex", "--format", "pdf"), "--latex writes a table; remove --format"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    runs: Path, refusal: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    assert refusal("figure", "held", *arguments) == message
