"""The Run handle on runs from each door: trained, imported, and one that is still being written."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import stabilitylab as sl
from stabilitylab.errors import NoDataError, RunNotFound
from stabilitylab.importers.csv import import_csv
from stabilitylab.run.handle import Run
from tests.commands import stablab_here
from tests.run.test_answers import write_run
from tests.synthetic import planted_grads_csv, planted_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs named attached, imported and live, all with the same planted spikes."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "attached", rms=True)
    planted = planted_grads_csv(root / "grads.csv", seed=1)
    with (root / "scalars.csv").open("w", encoding="utf-8") as file:
        curve = planted.series.evals["knn_top1"]
        file.write("iteration,name,value,num_samples\n")
        file.writelines(f"{t},knn_top1,{v!r},400\n" for t, v in zip(curve.iteration, curve.value.tolist(), strict=True))
    import_csv(root, root / "grads.csv", root / "scalars.csv", name="imported")
    writer = write_run(root / "live", close=False)
    writer.publish(wait=True)
    yield root
    writer.close("finished")


@pytest.mark.parametrize("name", ["attached", "imported", "live"])
def test_every_line_of_the_design(folder: Path, name: str, tmp_path: Path) -> None:
    planted = planted_run(seed=1)
    run = sl.open_run(name, folder)
    assert run.name == name
    assert run.status == ("running" if name == "live" else "finished")
    assert run.config.get("train", {"seed": 7})["seed"] == 7  # an imported run has no configuration
    assert list(run.layers["name"]) == [layer.name for layer in planted.series.layers]
    norms = run.signal("grad_norm")
    first = planted.series.layers[0]
    np.testing.assert_array_equal(norms.index, first.iteration)
    np.testing.assert_allclose(norms[first.name], first.grad_norm.astype(np.float32))
    assert list(norms.columns) == list(run.layers["name"])
    curve = planted.series.evals["knn_top1"]
    assert run.metric("knn_top1")["value"].to_numpy() == pytest.approx(curve.value)
    assert isinstance(run.events, pd.DataFrame)
    counted = run.sql("select count(*) as n from layer_stats").df()
    assert counted["n"].tolist() == [sum(len(layer.iteration) for layer in planted.series.layers)]

    a = run.analyze(metric="knn_top1", goal="max")
    onsets = sorted(planted.onsets[first.name])
    found = a.spikes[a.spikes["layer"] == first.name]["onset"]
    assert {o for o in onsets if (found - o).abs().min() <= 2} == set(onsets)
    assert (a.episodes["end"] >= a.episodes["start"]).all()
    assert (a.dips["trough"] >= a.dips["start"]).all()
    assert "onset" in a.spikes.attrs["columns"]
    assert a.lag.verdict == "first leads"
    assert "Lag from patch_embed" in repr(a.lag)
    assert "<table>" in a.lag._repr_html_()
    assert f"Analysis of {name}" in repr(a)
    assert "<table>" in a._repr_html_()
    assert f"Run {name}" in repr(run)
    if name == "attached":
        assert a.early_warning.signal == "adam_rms"
        assert "adam_rms" in repr(a.early_warning)
    else:
        assert not a.early_warning.judged
        assert "not judged" in repr(a.early_warning)
        with pytest.raises(NoDataError, match="Early warning: not judged"):
            _ = a.early_warning.hit_rate
    assert list(a.drifts.columns)[:3] == ["layer", "start", "end"]
    assert a.drifts.empty
    assert a.collapse.verdict in ("not", "not judged")
    assert "Collapse: " in repr(a.collapse)
    assert "not judged" not in repr(a.drifts)

    with pytest.raises(NoDataError, match="no training loss"):
        run.plot("loss")
    assert list(run.plots) == ["spikes", "heatmap", "metric", "lag", "propagation", "signal"]
    for kind in run.plots:
        figure = run.plot(kind)
        assert isinstance(figure, go.Figure)
        go.Figure(figure.to_dict())  # plotly checks each property
        assert len(figure.data) >= 1
    assert run.report(tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    run.close()
    assert run.status  # opens again


def test_a_run_that_was_trained_here(tmp_path: Path) -> None:
    options = ["--iterations", "20", "--log-grads", "--set", "eval.knn_every=5", "--set", "data.limit=200"]
    trained = stablab_here("train", *options, "--batch-size", "32", "--name", "short", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    run = sl.open_run(tmp_path / "runs" / "short")
    assert run.status == "finished"
    assert run.config["train"]["iterations"] == 20
    assert {"grad_norm", "grad_max", "weight_norm"} <= set(run.signals)
    assert run.signal("weight_norm").shape == (20, len(run.layers))
    assert run.metric("knn_top1")["value"].between(0, 1).all()
    assert run.iterations["loss"].notna().all()
    assert list(run.events.columns) == ["iteration", "kind", "detail"]
    assert run.sql("select count(*) as n from iterations").df()["n"].tolist() == [20]
    assert run.report(tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sl.runs(tmp_path / "runs").loc["short", "metric"] == "knn_top1"
    a = run.analyze(metric="knn_top1", goal="max")
    assert isinstance(a.episodes, pd.DataFrame)
    assert isinstance(a.dips, pd.DataFrame)
    assert isinstance(a.drifts, pd.DataFrame)
    assert "Collapse: " in repr(a.collapse)
    assert "<table>" in a.lag._repr_html_()
    assert "arly warning" in repr(a.early_warning)
    assert isinstance(a.spikes, pd.DataFrame)
    assert a.lag.verdict == "inconclusive"
    assert list(run.plots) == ["spikes", "heatmap", "metric", "loss", "signal"]
    for kind in run.plots:
        assert len(run.plot(kind).data) >= 1
    with pytest.raises(NoDataError, match="has no lag to draw"):
        run.plot("lag")


def test_what_was_not_judged_is_not_none_found(tmp_path: Path) -> None:
    planted_grads_csv(tmp_path / "grads.csv", seed=1)
    import_csv(tmp_path, tmp_path / "grads.csv", name="no_curve")
    a = sl.open_run("no_curve", tmp_path).analyze()
    assert len(a.spikes)
    assert a.dips.empty
    assert a.dips.attrs["judged"] is False
    assert repr(a.dips).startswith("dips: not judged: ")
    assert "not judged" in a.dips._repr_html_()


def test_paths_may_be_text(folder: Path) -> None:
    where = str(folder / "attached")
    with sl.Run(where) as run, sl.open_run(where) as opened:
        assert run.name == opened.name == "attached"
        assert run.path == opened.path
    assert list(sl.runs(str(folder)).index) == list(sl.runs(folder).index)


def test_runs_and_compare(folder: Path) -> None:
    listed = sl.runs(folder)
    assert sorted(listed.index) == ["attached", "imported", "live"]
    assert listed.loc["live", "status"] == "running"
    assert listed.loc["attached", "mitigation"] == "x"
    for name in listed.index:
        last = sl.open_run(name, folder).metric("knn_top1")["value"].iloc[-1]
        assert listed.loc[name, "metric"] == "knn_top1"
        assert listed.loc[name, "value"] == pytest.approx(last)
    found = sl.compare(["attached", sl.open_run("live", folder), folder / "attached"], baseline="x", runs_dir=folder)
    assert list(found.runs.index) == ["attached", "live"]
    assert found.effects.empty
    assert "all runs have mitigation 'x'" in repr(found)
    for kind in ("metric", "finals"):
        go.Figure(found.plot(kind).to_dict())  # plotly checks each property
    assert {line.name for line in found.plot("metric").data} >= {"x"}
    with pytest.raises(NoDataError, match=r"no plot 'spikes' of a comparison; available: metric, loss, finals"):
        found.plot("spikes")
    with pytest.raises(NoDataError, match="no run has the data"):
        found.plot("loss")
    with pytest.raises(NoDataError, match="at least two runs"):
        sl.compare(["attached"], runs_dir=folder)


def test_what_is_missing_names_what_there_is(folder: Path) -> None:
    with pytest.raises(RunNotFound, match=r"no run 'atached' in .*; similar: attached"):
        sl.open_run("atached", folder)
    with pytest.raises(RunNotFound, match=r"no run 'nope' in .*; its runs: attached, imported, live"):
        sl.open_run("nope", folder)
    with pytest.raises(RunNotFound, match="runs_dir="):
        sl.open_run("x", folder / "nowhere")
    run = sl.open_run("attached", folder)
    with pytest.raises(NoDataError, match=r"run attached has no signal 'grad_nrm'; it has grad_norm, adam_rms"):
        run.signal("grad_nrm")
    with pytest.raises(NoDataError, match="run attached has no metric 'val_acc'; it has knn_top1"):
        run.metric("val_acc")
    with pytest.raises(NoDataError, match="no plot 'spike'; it has spikes, heatmap, "):
        run.plot("spike")
    with pytest.raises(NoDataError, match="has no signal 'weight_norm'"):
        run.plot("signal", name="weight_norm")
    with pytest.raises(NoDataError, match=r"plot 'heatmap': got an unexpected keyword argument 'layer'"):
        run.plot("heatmap", layer="x")
    with pytest.raises(NoDataError, match="no gradients of 'head'; it has patch_embed"):
        run.plot("spikes", layers=["head"])


def test_a_live_run_shows_new_rows_without_refresh(tmp_path: Path) -> None:
    import torch

    model = torch.nn.Linear(2, 1, bias=False)
    with sl.record(model, run="live", runs_dir=tmp_path, flush_every=1) as rec:
        run: Run | None = None
        for t in range(2):
            model(torch.ones(1, 2)).sum().backward()
            rec.step(loss=float(t))
            rec._writer.publish(wait=True)  # type: ignore[union-attr]
            run = run or sl.open_run("live", tmp_path)
            assert len(run.signal("grad_norm")) == t + 1
            assert run.iterations["loss"].tolist() == list(map(float, range(t + 1)))
    assert run is not None
    assert run.status == "finished"


def test_the_last_row_of_a_repeated_iteration_counts() -> None:
    from stabilitylab.analysis.series import last_of_each

    iteration = np.array([0, 1, 2, 1, 2, 3])
    naive: dict[int, int] = {int(t): row for row, t in enumerate(iteration)}
    assert np.arange(6)[last_of_each(iteration)].tolist() == [naive[t] for t in sorted(naive)]
    assert last_of_each(np.array([0, 5, 6])) == slice(None)


def test_importing_the_package_is_quick_and_brings_no_torch() -> None:
    code = (
        "import sys, time; t = time.process_time(); import stabilitylab; "
        "print(time.process_time() - t, *(m for m in ('torch', 'pandas', 'duckdb', 'plotly') if m in sys.modules))"
    )
    took: list[Any] = []
    for _ in range(3):
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert answer[1:] == []
        took.append(float(answer[0]))
        if min(took) < 0.1:
            break
        time.sleep(0.1)
    assert min(took) < 0.1


def test_the_python_of_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STABLAB_RUNS", raising=False)
    for name in ("my_run", "run_001", "run_002"):
        write_run(tmp_path / "runs" / name)
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "open_run" in b)
    exec(compile(block, "README.md", "exec"), {"__name__": "__readme__"})
    assert (tmp_path / "report.html").exists()
