"""Names of runs: reserved only once, found again, and similar names suggested."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stabilitylab.errors import RunExists, RunNotFound, StoreError
from stabilitylab.store.listing import ListedMetric
from stabilitylab.store.location import claim_run, find_run, list_runs, runs_root
from stabilitylab.store.writer import RunWriter
from tests.store.conftest import LAYERS, add, start


def test_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STABLAB_RUNS", raising=False)
    assert runs_root(None) == Path("runs")
    monkeypatch.setenv("STABLAB_RUNS", "elsewhere")
    assert runs_root(None) == Path("elsewhere")
    assert runs_root("here") == Path("here")


def test_ids_count_up_from_the_highest(tmp_path: Path) -> None:
    root = tmp_path / "new" / "runs"
    assert claim_run(root).name == "run_001"
    assert claim_run(root).name == "run_002"
    (root / "run_999").mkdir()
    assert claim_run(root).name == "run_1000"
    assert claim_run(root, "held").name == "held"
    with pytest.raises(RunExists, match="run 'held' already exists"):
        claim_run(root, "held")


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "a\\b", "a\nb", "-x", ".hidden", "x" * 300, "a?", "a "])
def test_names_that_no_run_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="cannot be named"):
        claim_run(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_parallel_claims_never_collide(tmp_path: Path) -> None:
    code = (
        "import sys; from stabilitylab.store.location import claim_run\n"
        "sys.stdin.readline()\n"
        "print(*(claim_run(sys.argv[1]).name for _ in range(50)))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    names = [name for process in processes for name in process.communicate()[0].split()]
    assert len(names) == 100
    assert sorted(names) == [f"run_{i:03d}" for i in range(1, 101)]


def test_finding_by_name_and_by_path(tmp_path: Path) -> None:
    start(tmp_path / "run_001").close()
    assert find_run(tmp_path, "run_001") == tmp_path / "run_001"
    assert find_run(tmp_path / "nowhere", tmp_path / "run_001") == tmp_path / "run_001"
    (tmp_path / "run_012").mkdir()
    with pytest.raises(RunNotFound, match=r"no run 'run_01' in .*; similar: run_012, run_001"):
        find_run(tmp_path, "run_01")
    for wrong in ("", ".", "..", str(tmp_path)):
        with pytest.raises(RunNotFound):
            find_run(tmp_path, wrong)
    with pytest.raises(RunNotFound, match="the folder has no runs"):
        find_run(tmp_path / "nowhere", "x")


def test_the_list_survives_broken_runs(tmp_path: Path) -> None:
    config = {
        "method": {"name": "mocov3"},
        "model": {"arch": "vit_tiny"},
        "data": {"name": "digits"},
        "mitigation": ["frozen-patch"],
    }
    with RunWriter.create(tmp_path / "good", config=config, meta={}, layers=LAYERS) as writer:
        add(writer, range(5))
        writer.append("evals", {"iteration": [2, 4, 5], "metric": "knn_top1", "value": [0.5, 0.25, np.nan]})
        writer.append("evals", {"iteration": [4, 2], "metric": "reward", "value": [7.0, 3.0]})
        writer.append("events", {"iteration": [0], "kind": "metric", "detail": '{"name": "reward", "goal": "max"}'})
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.duckdb").write_text("x")
    (tmp_path / "not a run").mkdir()
    (tmp_path / "a file").write_text("")
    live = start(tmp_path / "live")
    good, running, bad = sorted(list_runs(tmp_path), key=lambda run: ["good", "live", "bad"].index(run.name))
    live.close()
    assert (good.status, good.iterations, good.method, good.arch) == ("finished", 5, "mocov3", "vit_tiny")
    assert (good.data, good.mitigation, good.knn_top1) == ("digits", ("frozen-patch",), 0.25)
    assert good.metrics == {"knn_top1": ListedMetric(0.25, 2), "reward": ListedMetric(7.0, 2, "max")}
    assert good.path == tmp_path / "good"
    assert good.created_at
    assert (running.status, running.iterations, running.knn_top1) == ("running", 0, None)
    assert bad.status == "broken"
    assert "cannot be read" in bad.problem
    assert list_runs(tmp_path / "nowhere") == []
