"""TensorBoard's real event files and W&B exports, and a run as Parquet and CSV."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from torch.utils.tensorboard import SummaryWriter

from stabilitylab.integrations.csv import LogFormatError, import_csv
from stabilitylab.integrations.tags import import_tags, read_tensorboard, read_wandb
from stabilitylab.store.errors import StoreError
from stabilitylab.store.export import export_run
from stabilitylab.store.reader import open_run
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
