"""TensorBoard's real event files and W&B exports, and a run as Parquet and CSV."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from torch.utils.tensorboard import SummaryWriter

from stabilitylab.errors import LogFormatError, StoreError
from stabilitylab.importers.csv import import_csv
from stabilitylab.importers.tags import import_tags, read_tensorboard, read_wandb
from stabilitylab.store.export import export_run
from stabilitylab.store.locks import COMPACT_LOCK, try_lock
from stabilitylab.store.reader import open_run
from stabilitylab.store.writer import RunWriter
from tests.cli.conftest import Stablab, stablab  # noqa: F401  (a fixture)
from tests.synthetic import planted_grads_csv


def write_events(folder: Path, new_style: bool = False) -> dict[str, np.ndarray]:
    values = {
        layer: np.abs(np.random.default_rng(i).normal(size=20)) for i, layer in enumerate(("predictor", "patch_embed"))
    }
    with SummaryWriter(str(folder)) as writer:
        for layer, norms in values.items():
            for step, value in enumerate(norms):
                writer.add_scalar(f"grad_norm/{layer}", value, step, new_style=new_style)
        writer.add_scalar("train/loss", 1.5, 3)
        writer.add_scalar("val/knn_top1", 0.5, 4)
        writer.add_scalar("other", 2.0, 5)
    return values


@pytest.mark.parametrize("new_style", [False, True])
def test_event_files(new_style: bool, tmp_path: Path) -> None:
    values = write_events(tmp_path / "tb", new_style)
    run = import_tags(tmp_path / "runs", read_tensorboard(tmp_path / "tb"), source="tensorboard", name="tb")
    with open_run(run) as reader:
        assert [(row.name, row.depth) for row in reader.layers()] == [("patch_embed", 0), ("predictor", 1)]
        series = reader.layer_series()
        for row in reader.layers():
            np.testing.assert_allclose(series[row.layer_id][1], values[row.name], rtol=1e-6)
        assert reader.evals()["knn_top1"]["value"].tolist() == [0.5]
        assert reader.table("iterations")["loss"].tolist() == [1.5]
        assert reader.table("scalars")["name"].tolist() == ["other"]


def test_the_command(tmp_path: Path, stablab: Stablab) -> None:  # noqa: F811
    write_events(tmp_path / "tb")
    assert "imported as tb_run" in stablab("import", "tensorboard", "tb", "--name", "tb_run").stdout
    done = stablab("import", "tensorboard", "nowhere", code=2)
    assert done.stderr == "stablab: nowhere holds no event file (*tfevents*); give TensorBoard's log folder\n"
    done = stablab("import", "tensorboard", "tb", "--grad-tag", "weights/(?P<layer>.+)", code=2)
    assert "no tag of tensorboard is a gradient norm" in done.stderr


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_wandb_exports(form: str, tmp_path: Path) -> None:
    rows = [
        {"_step": i, "gradients/stem": 1.0 + i, "loss": "NaN" if i == 2 else 0.1 * i, "_runtime": 3} for i in range(4)
    ]
    path = tmp_path / f"history.{form}"
    if form == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    run = import_tags(tmp_path / "runs", read_wandb(path), source="wandb")
    with open_run(run) as reader:
        assert reader.layer_series()[0][1].tolist() == [1, 2, 3, 4]
        loss = reader.table("iterations")["loss"]
        assert np.isnan(loss[2])
        assert loss[3] == pytest.approx(0.3)
        assert len(reader.table("scalars")["name"]) == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "x,y\n1,2\n", "line 2: no step column"),
        ("a.csv", "step,gradients/a\n0.5,2\n", "line 2: step '0.5' is not a whole number"),
        ("a.csv", "", "holds no numbers"),
        ("a.csv", "step,gradients/a\n3e9,2\n", "line 2: step '3e9' is not a whole number"),
        ("a.csv", "step,gradients/a\n0," + "1" * 140_000, "is not readable as CSV: field larger than field limit"),
        ("a.jsonl", '{"step": ' + "1" * 400 + ', "grad/a": 1}', "line 1: step '1+' is not a whole number"),
        ("a.jsonl", '{"step": ' + "1" * 5000 + "}", "line 1: not JSON"),
        ("a.jsonl", "{oops}\n", "line 1: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: not a JSON object"),
        ("a.csv", "step,gradients/a\n0,-2\n", "gradients/a is -2 at step 0"),
        ("a.csv", "step,loss\n0,2\n", "no tag of wandb is a gradient norm"),
    ],
)
def test_faults_are_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(LogFormatError, match=message):
        import_tags(tmp_path / "runs", read_wandb(path), source="wandb")
    assert not (tmp_path / "runs").exists()


def test_maxima_go_with_norms_and_layers_are_in_natural_order(tmp_path: Path) -> None:
    tags = {f"grad_norm/blocks.{i}": {0: 1.0 + i, 1: 2.0} for i in (0, 1, 10, 11, 2)}
    tags["grad_max/blocks.10"] = {1: 0.5}
    run = import_tags(tmp_path, tags, source="x")
    with open_run(run) as reader:
        assert [row.name for row in reader.layers()] == [f"blocks.{i}" for i in (0, 1, 2, 10, 11)]
        assert {i: v.tolist() for i, (_, v) in reader.layer_series("grad_max").items()} == {3: [0.5]}
        assert len(reader.table("scalars")["name"]) == 0


def test_two_tags_of_one_short_name_keep_their_own(tmp_path: Path) -> None:
    tags = {
        "grad/a": {0: 1.0},
        "loss": {0: 1.0},
        "train/loss": {0: 2.0},
        "a/knn_top1": {0: 75.0},
        "b/knn_top1": {0: 0.5},
    }
    with open_run(import_tags(tmp_path, tags, source="x")) as reader:
        assert set(reader.table("scalars")["name"]) == tags.keys() - {"grad/a", "loss"}
        assert reader.table("iterations")["loss"].tolist() == [1]


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"train/grad_norm/a": {0: 1.0}, "val/grad_norm/a": {0: 1.0}}, "are both layer 'a'"),
        ({"grad/a": {0: 1.0}, "val/knn_top1": {0: 75.0}}, "val/knn_top1 is 75 at step 0, not a fraction"),
        ({f"grad/{i}": {0: 1.0} for i in range(40_000)}, "40,000 layers; a run holds up to 32,767"),
    ],
    ids=["layer", "fraction", "layers"],
)
def test_tags_that_cannot_be_one_run(tags: dict[str, dict[int, float]], message: str, tmp_path: Path) -> None:
    with pytest.raises(LogFormatError, match=message):
        import_tags(tmp_path / "runs", tags, source="x")
    assert not (tmp_path / "runs").exists()


def test_two_runs_below_one_folder_are_not_mixed(tmp_path: Path) -> None:
    for version in ("version_1", "version_100"):
        write_events(tmp_path / version)
    with pytest.raises(LogFormatError, match=r"version_1 and .*version_100 both hold .*: two runs"):
        read_tensorboard(tmp_path)


def test_the_columns_of_wandbs_page(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    one = "Step,run-a - grad/x,run-a - grad/x__MIN,run-a - grad/x__MAX\n0,1,1,1\n"
    path.write_text(one)
    assert read_wandb(path) == {"grad/x": {0: 1.0}}
    path.write_text("Step,run-a - grad/x,run-b - grad/x\n0,1,2\n")
    with pytest.raises(LogFormatError, match="mixes runs: run-a, run-b; export one"):
        read_wandb(path)


@pytest.mark.parametrize(
    ("tag", "message"), [("grad/(.+)", "needs a group named layer"), ("(", "is no regular expression")]
)
def test_bad_patterns(tag: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LogFormatError, match=message):
        import_tags(tmp_path, {"grad/a": {0: 1.0}}, source="x", grad_tag=tag)


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_export_and_read_back(form: str, tmp_path: Path) -> None:
    planted_grads_csv(tmp_path / "grads.csv")
    run = import_csv(tmp_path / "runs", tmp_path / "grads.csv", name="r")
    files = export_run(run, tmp_path / "out", form)
    assert {f.name for f in files} == {f"{t}.{form}" for t in ("meta", "layers", "layer_stats")}
    read: Callable[[str], duckdb.DuckDBPyRelation] = duckdb.read_parquet if form == "parquet" else duckdb.read_csv
    back = read(str(tmp_path / "out" / f"layer_stats.{form}")).fetchnumpy()
    with open_run(run) as reader:
        rows = reader.table("layer_stats")
    for column in ("iteration", "layer_id", "grad_norm"):
        np.testing.assert_allclose(np.sort(np.asarray(back[column])), np.sort(rows[column]), rtol=1e-6)
    assert np.ma.getmaskarray(back["grad_max"]).all()  # not measured stays NULL
    with pytest.raises(StoreError, match="exists; export into another folder"):
        export_run(run, tmp_path / "out", form)


def test_a_run_that_could_not_be_merged_is_not_exported_in_part(tmp_path: Path) -> None:
    planted_grads_csv(tmp_path / "grads.csv")
    run = import_csv(tmp_path / "runs", tmp_path / "grads.csv", name="r")
    lock = RunWriter.annotate(run)
    lock.append("scalars", {"iteration": [1], "name": ["late"], "value": [1.0]})
    lock.publish(wait=True)
    kept = tmp_path / "kept"
    shutil.copytree(run, kept)  # as a crash leaves it
    lock.close()
    other = try_lock(kept / "segments" / COMPACT_LOCK)  # somebody else is at it
    assert other is not None
    with pytest.raises(StoreError, match="holds rows that could not be merged"):
        export_run(kept, tmp_path / "out")
    other.release()
    assert tmp_path / "out" / "scalars.parquet" in export_run(kept, tmp_path / "out")
