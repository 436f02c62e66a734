"""Kept answers: the same as new ones, gone with new rows, never in the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import stabilitylab.run.answers as answers
from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.errors import NoDataError
from stabilitylab.run.answers import answer_run
from stabilitylab.store.writer import LayerRow, RunWriter
from tests.synthetic import planted_run

CONFIG = {"mitigation": ["x"], "train": {"seed": 7}, "optim": {"base_lr": 0.1}}


def write_run(folder: Path, *, rms: bool = False, close: bool = True) -> RunWriter:
    planted = planted_run(seed=1)
    folder.mkdir(parents=True)
    layers = [LayerRow(i, x.name, x.depth, 10, True) for i, x in enumerate(planted.series.layers)]
    writer = RunWriter.create(folder, config=CONFIG, meta={}, layers=layers)
    for i, layer in enumerate(planted.series.layers):
        n = len(layer.iteration)
        rows = {"iteration": layer.iteration, "layer_id": np.full(n, i), "grad_norm": layer.grad_norm}
        if rms:
            rows["adam_rms"] = np.roll(layer.grad_norm, -3)
        writer.append("layer_stats", rows)
    curve = planted.series.evals["knn_top1"]
    names = np.array(["knn_top1"] * len(curve.iteration))
    writer.append(
        "evals",
        {"iteration": curve.iteration, "metric": names, "value": curve.value, "num_samples": curve.num_samples},
    )
    if close:
        writer.close("finished")
    return writer


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the analysis really ran."""
    calls: list[int] = []
    real = answers.analyze_run

    def counting(*args: object, **more: object) -> object:
        calls.append(1)
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(answers, "analyze_run", counting)
    return calls


def test_a_kept_answer_is_the_answer(tmp_path: Path, counted: list[int]) -> None:
    write_run(tmp_path / "run_001", rms=True)
    first = answer_run(tmp_path / "run_001")
    again = answer_run(tmp_path / "run_001")
    assert len(counted) == 1
    assert first == again
    assert first.analysis.to_dict() == again.analysis.to_dict()
    assert (first.summary.mitigation, first.summary.seed) == ("x", 7)
    assert first.analysis.spikes
    assert first.analysis.dips
    early = first.analysis.early_warning
    assert early is not None
    assert early.median_lead == pytest.approx(3, abs=1)
    assert answer_run(tmp_path / "run_001", keep=False) == first
    assert len(counted) == 2


def test_what_is_not_finite_is_kept_as_it_is(tmp_path: Path) -> None:
    writer = write_run(tmp_path / "run_001", close=False)
    writer.append("layer_stats", {"iteration": [3000], "layer_id": [0], "grad_norm": [float("nan")]})
    writer.close("finished")
    first = answer_run(tmp_path / "run_001")
    assert any(spike.kind == "nonfinite" and spike.z == float("inf") for spike in first.analysis.spikes or ())
    assert answer_run(tmp_path / "run_001") == first


def test_other_settings_are_another_answer(tmp_path: Path, counted: list[int]) -> None:
    write_run(tmp_path / "run_001")
    answer_run(tmp_path / "run_001")
    strict = answer_run(tmp_path / "run_001", SpikeSettings(ratio_open=12.0))
    assert len(counted) == 2
    assert strict.analysis.settings == SpikeSettings(ratio_open=12.0)
    answer_run(tmp_path / "run_001")
    assert len(counted) == 2


def test_new_rows_make_it_new(tmp_path: Path, counted: list[int]) -> None:
    writer = write_run(tmp_path / "run_001", close=False)
    writer.publish(wait=True)
    before = answer_run(tmp_path / "run_001")
    assert answer_run(tmp_path / "run_001") == before
    assert len(counted) == 1
    for i in range(5):
        writer.append("layer_stats", {"iteration": [3000], "layer_id": [i], "grad_norm": [1.0]})
    writer.publish(wait=True)
    after = answer_run(tmp_path / "run_001")
    assert (before.analysis.iterations, after.analysis.iterations) == (3000, 3001)
    writer.close("finished")
    assert answer_run(tmp_path / "run_001").status == "finished"


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"rows": []}', "null"])
def test_a_damaged_answer_is_worked_out_anew(tmp_path: Path, counted: list[int], damage: str) -> None:
    write_run(tmp_path / "run_001")
    first = answer_run(tmp_path / "run_001")
    (file,) = (tmp_path / "run_001" / "analysis").iterdir()
    whole = json.loads(file.read_text())
    file.write_text(damage)
    assert answer_run(tmp_path / "run_001") == first
    file.write_text(json.dumps(whole | {"answer": {"analysis": {}}}))
    assert answer_run(tmp_path / "run_001") == first
    assert len(counted) == 3


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(tmp_path: Path) -> None:
    write_run(tmp_path / "run_001")
    (tmp_path / "run_001" / "analysis").write_text("a file where the folder should be")
    first = answer_run(tmp_path / "run_001")
    assert answer_run(tmp_path / "run_001") == first


def test_no_gradients_are_refused_and_not_kept(tmp_path: Path) -> None:
    folder = tmp_path / "blind"
    folder.mkdir()
    RunWriter.create(folder, config={}, meta={}, layers=[LayerRow(0, "a", 0, 1, True)]).close("finished")
    with pytest.raises(NoDataError, match="no recorded gradient norms; train with --log-grads"):
        answer_run(folder)
    assert not (folder / "analysis").exists()


def test_a_run_with_a_metric_and_no_gradients_is_judged_by_it(tmp_path: Path) -> None:
    folder = tmp_path / "metric"
    folder.mkdir()
    writer = RunWriter.create(folder, config={}, meta={}, layers=[LayerRow(0, "a", 0, 1, True)])
    value = [2.0] * 20 + [3.0] * 5 + [2.0] * 15
    writer.append(
        "evals",
        {
            "iteration": list(range(0, 400, 10)),
            "metric": ["val_loss"] * 40,
            "value": value,
            "num_samples": [0] * 40,
        },
    )
    writer.close("finished")
    found = answer_run(folder).analysis
    assert (found.spikes, found.lag, found.episodes) == (None, None, None)
    assert [(dip.start, dip.recovered) for dip in found.dips or ()] == [(200, 250)]
    assert any("no gradient norms were recorded: spikes, their lag and drift are not judged" in n for n in found.notes)


def test_a_new_version_asks_anew(tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run_001")
    first = answer_run(tmp_path / "run_001")
    monkeypatch.setattr(answers, "VERSION", answers.VERSION + 1)
    assert replace(answer_run(tmp_path / "run_001"), problems=()) == first
    assert len(counted) == 2


def test_a_changed_byte_or_another_name_makes_it_new(tmp_path: Path, counted: list[int]) -> None:
    run = tmp_path / "run_001"
    write_run(run)
    first = answer_run(run)
    (file,) = (run / "analysis").iterdir()
    whole = file.read_text()
    digit = next(i for i in range(len(whole) // 2, len(whole)) if whole[i] in "12345")
    file.write_text(whole[:digit] + "7" + whole[digit + 1 :])
    assert answer_run(run) == first
    file.write_text(json.dumps(json.loads(whole) | {"answer": "[" * 100_000}))
    assert answer_run(run) == first
    assert len(counted) == 3
    run.rename(tmp_path / "other")
    assert answer_run(tmp_path / "other").analysis.run == "other"
    assert answer_run(tmp_path / "other").summary.run == "other"
    assert len(counted) == 4
