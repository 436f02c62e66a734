"""``stablab cause``: each experiment from the command line, and what is refused before anything runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stabilitylab.cli import cli
from stabilitylab.errors import ConfigError
from stabilitylab.run.experiments import load_experiments
from stabilitylab.studies import train_run
from tests.cause.conftest import tiny_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    train_run(tiny_config(), root, "run")
    return root


def cause(runs: Path, *args: str) -> Any:
    return CliRunner().invoke(cli, ["cause", *args, "--runs-dir", str(runs)], catch_exceptions=False)


def test_every_experiment_tells_its_check_its_cost_and_its_result(runs: Path, tmp_path: Path) -> None:
    done = cause(
        runs, "impulse", "run", "--layer", "patch_embed,predictor", "--at", "40:46:5", "--kicks", "1", "--horizon", "4"
    )
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "replay check: iterations 40, 41 reproduce the recorded norms bit for bit"
    assert lines[1].startswith("cost: 6 continuations of 4 iterations, about ")
    assert "2 kicks per layer of 0.5 times its weights. Too few to judge which layers respond" in done.output

    skip = tmp_path / "skip.txt"
    done = cause(runs, "blame", "run", "--at", "43", "--layer", "blocks.0", "--by", "novelty", "-o", str(skip))
    assert "Of the 16 images of batch 43, image " in done.output
    assert "-o skip.txt" not in done.output  # the list is already written
    assert len([line for line in skip.read_text().splitlines() if line[0] != "#"]) == 8
    listed = CliRunner().invoke(cli, ["train", "--skip-list", str(skip), "--dry-run"])
    assert "skip = [" in listed.output

    done = cause(runs, "sharpness", "run", "--at", "40", "--whole", "--steps", "5")
    assert "all layers" in done.output
    assert " of the edge " in done.output

    found = load_experiments(runs / "run")
    assert [e.kind for e in found] == ["impulse", "blame", "sharpness"]
    assert all(e.picture is not None for e in found)
    report = CliRunner().invoke(cli, ["report", "run", "-o", str(tmp_path / "r.html"), "--runs-dir", str(runs)])
    assert report.exit_code == 0, report.output
    page = (tmp_path / "r.html").read_text()
    assert "what caused it" in page
    assert page.count('class="experiment"') == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["impulse", "run", "--layer", "block.0", "--at", "40"], "has no layer 'block.0'; its layers: patch_embed"),
        (["impulse", "run", "--layer", "predictor", "--at", "3"], "no checkpoint at or before iteration 3"),
        (["impulse", "run", "--layer", "predictor", "--at", "40"], "the experiment needs 60 from iteration 40 on"),
        (["swap", "run", "--at", "45"], "is not a spike"),
        (["blame", "run", "--at", "60", "--layer", "predictor"], "has 60 iterations"),
        (["sharpness", "run", "--at", "2"], "no checkpoint at or before iteration 2"),
        (["blame", "imported", "--at", "40"], "it was not trained by `stablab train`"),
    ],
)
def test_bad_input_is_refused(runs: Path, args: list[str], message: str) -> None:
    if not (runs / "imported").exists():
        shutil.copytree(runs / "run", runs / "imported")
        (runs / "imported" / "config.toml").unlink()
    with pytest.raises(ConfigError, match=message):
        cause(runs, *args)


@pytest.mark.parametrize("at", ["4x", "1:2:3:4", "5:5", "1:9:0"])
def test_iterations_are_numbers_or_ranges(runs: Path, at: str) -> None:
    done = cause(runs, "sharpness", "run", "--at", at)
    assert done.exit_code == 2
