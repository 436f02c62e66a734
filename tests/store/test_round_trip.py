"""Rows written through the public API are read back unchanged."""

import time
from pathlib import Path

import numpy as np
import pytest

from stabilitylab.errors import RunBroken, RunExists, StoreError
from stabilitylab.store.reader import open_run
from stabilitylab.store.schema import LayerRow
from stabilitylab.store.writer import RunWriter

LAYERS = [LayerRow(0, "patch_embed", 0, 100), LayerRow(1, "blocks.0", 1, 50), LayerRow(2, "norm", 2, 8, False)]


def write(run_dir: Path, iterations: range, writer: RunWriter | None = None) -> None:
    writer = writer or RunWriter.create(run_dir, config={"a": {"b": 1}}, meta={"seed": "3"}, layers=LAYERS)
    with writer:
        for iteration in iterations:
            writer.append(
                "layer_stats",
                {"iteration": [iteration] * 2, "layer_id": [0, 1], "grad_norm": [iteration, iteration + 0.5]},
            )
            writer.append("iterations", {"iteration": iteration, "loss": 1.0})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run_001"


def test_finished_run_is_one_file_that_holds_all(run_dir: Path) -> None:
    write(run_dir, range(7))
    assert [p.name for p in run_dir.iterdir()] == ["run.duckdb"]
    with open_run(run_dir) as run:
        assert run.status == "finished"
        assert run.config == {"a": {"b": 1}}
        assert run.meta["seed"] == "3"
        assert run.meta["run_id"] == "run_001"
        assert run.meta["schema_version"] == "1"
        assert run.layers() == LAYERS
        assert run.num_iterations == 7
        assert run.problems == []
        assert run.verify() == []
        series = run.layer_series("grad_norm")
        assert list(series) == [0, 1]
        iteration, value = series[1]
        assert iteration.dtype == np.int64
        assert value.dtype == np.float64
        assert iteration.tolist() == list(range(7))
        assert value.tolist() == [i + 0.5 for i in range(7)]


def test_a_live_run_reads_like_a_finished_one(run_dir: Path) -> None:
    writer = RunWriter.create(run_dir, config={}, meta={}, layers=LAYERS)
    with open_run(run_dir) as run:
        assert run.status == "running"
        assert run.num_iterations == 0
        assert run.layer_series() == {}
        assert run.layers() == LAYERS
        writer.append("layer_stats", {"iteration": [0, 0], "layer_id": [1, 0], "grad_norm": [2.0, 3.0]})
        writer.publish(wait=True)
        assert run.num_iterations == 0
        run.refresh()
        assert run.num_iterations == 1
        assert run.layer_series()[0][1].tolist() == [3.0]
        rows = run.query("SELECT iteration, layer_id, grad_norm FROM layer_stats WHERE layer_id = ?", [1])
        assert rows.fetchall() == [(0, 1, 2.0)]
        assert run.query("SELECT value FROM meta WHERE key = 'status'").fetchone() == ("running",)
        writer.close()
        # The segments this reader looks at are gone now; it finds the file that replaced them.
        assert run.layer_series()[1][1].tolist() == [2.0]
        assert run.status == "finished"


def test_nan_infinity_and_null_are_three_things(run_dir: Path) -> None:
    with RunWriter.create(run_dir, config={}, meta={}, layers=LAYERS) as writer:
        writer.append(
            "layer_stats",
            {
                "iteration": [0, 1, 2],
                "layer_id": [0, 0, 0],
                "grad_norm": [float("nan"), float("inf"), None],
                "grad_max": np.ma.array([np.nan, 1.0, 2.0], mask=[False, True, False]),
            },
        )
        for wait in (True, False):
            writer.publish(wait=wait)
            with open_run(run_dir) as run:
                rows = run.query("SELECT grad_norm, grad_max, weight_norm FROM layer_stats").fetchall()
            assert np.isnan(rows[0][0])
            assert np.isnan(rows[0][1])
            assert rows[1] == (np.inf, None, None)
            assert rows[2] == (None, 2.0, None)
    with open_run(run_dir) as run:
        iteration, value = run.layer_series("grad_norm")[0]
        assert iteration.tolist() == [0, 1]
        np.testing.assert_array_equal(value, [np.nan, np.inf])
        assert run.layer_series("weight_norm") == {}
        assert np.isnan(run.table("layer_stats")["weight_norm"]).all()


def test_evals_events_scalars(run_dir: Path) -> None:
    with RunWriter.create(run_dir, config={}, meta={}, layers=LAYERS) as writer:
        writer.append("evals", {"iteration": [20, 10], "metric": "knn_top1", "value": [0.4, 0.3], "num_samples": 100})
        writer.append("evals", {"iteration": [10], "metric": ["probe"], "value": [0.9]})
        writer.append("scalars", {"iteration": [1], "name": ["mine"], "value": [5.0]})
        writer.event(3, "nonfinite", "it's blocks.0")
    with open_run(run_dir) as run:
        evals = run.evals()
        assert list(evals) == ["knn_top1", "probe"]
        assert evals["knn_top1"]["iteration"].tolist() == [10, 20]
        assert evals["knn_top1"]["value"].tolist() == [0.3, 0.4]
        assert evals["knn_top1"]["num_samples"].tolist() == [100, 100]
        assert evals["probe"]["num_samples"].tolist() == [0]
        assert [(e.iteration, e.kind, e.detail) for e in run.events()] == [(3, "nonfinite", "it's blocks.0")]
        assert run.table("scalars")["name"].tolist() == ["mine"]
        assert np.isnan(run.table("evals")["num_samples"]).sum() == 1


def test_appended_arrays_are_copied(run_dir: Path) -> None:
    buffer = np.array([1.0], dtype=np.float32)
    with RunWriter.create(run_dir, config={}, meta={}, layers=LAYERS) as writer:
        writer.append("layer_stats", {"iteration": [0], "layer_id": [0], "grad_norm": buffer})
        buffer[0] = 9.0
    with open_run(run_dir) as run:
        assert run.layer_series()[0][1].tolist() == [1.0]


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ("nothing", {}, "no table 'nothing'"),
        ("layer_stats", {"iteration": [0], "layer_id": [0], "norm": [1]}, "no column 'norm'"),
        ("layer_stats", {"iteration": [0]}, "needs a value for 'layer_id'"),
        ("layer_stats", {"iteration": [0, 1], "layer_id": [0]}, "differ in length"),
        ("layer_stats", {"iteration": [0], "layer_id": [0], "grad_norm": ["x"]}, "must be numbers"),
        ("layer_stats", {"iteration": [0], "layer_id": [0], "grad_norm": np.zeros((1, 2))}, "must be 1-D"),
        ("layer_stats", {"iteration": [None], "layer_id": [0]}, "must have a value in every row"),
    ],
)
def test_rows_that_do_not_fit_are_refused(run_dir: Path, table: str, columns: dict, message: str) -> None:
    with (
        RunWriter.create(run_dir, config={}, meta={}, layers=LAYERS) as writer,
        pytest.raises(ValueError, match=message),
    ):
        writer.append(table, columns)


def test_how_a_run_ends_is_its_status(tmp_path: Path) -> None:
    def fail(writer: RunWriter, error: BaseException) -> None:
        with writer:
            writer.append("iterations", {"iteration": [0], "loss": [1.0]})
            raise error

    def end(name: str, error: BaseException) -> str:
        with pytest.raises(type(error)):
            fail(RunWriter.create(tmp_path / name, config={}, meta={}, layers=LAYERS), error)
        with open_run(tmp_path / name) as run:
            assert run.num_iterations == 1
            return run.status

    assert end("a", ValueError("x")) == "crashed"
    assert end("b", KeyboardInterrupt()) == "stopped"
    writer = RunWriter.create(tmp_path / "c", config={}, meta={}, layers=LAYERS)
    writer.close("stopped")
    writer.close("finished")
    with open_run(tmp_path / "c") as run:
        assert run.status == "stopped"
    with pytest.raises(StoreError, match="is closed"):
        writer.event(0, "late")


def test_a_run_is_not_overwritten(run_dir: Path) -> None:
    write(run_dir, range(2))
    with pytest.raises(RunExists, match="already contains a run"):
        RunWriter.create(run_dir, config={}, meta={}, layers=LAYERS)


def test_an_empty_folder_is_no_run(run_dir: Path) -> None:
    run_dir.mkdir()
    with pytest.raises(RunBroken, match="contains no run"):
        open_run(run_dir)


def test_folder_names_are_no_patterns(tmp_path: Path) -> None:
    for other in ("r1", "axb"):
        write(tmp_path / other, range(9))
    for name in ("r[1]", "a*b", "it's", "{x,y}"):
        writer = RunWriter.create(tmp_path / name, config={}, meta={}, layers=LAYERS)
        writer.append("iterations", {"iteration": [0], "loss": [1.0]})
        writer.publish(wait=True)
        with open_run(tmp_path / name) as run:
            assert run.num_iterations == 1
            writer.close()
            assert run.num_iterations == 1


def test_rows_that_nobody_publishes_publish_themselves(run_dir: Path) -> None:
    with RunWriter.create(run_dir, config={}, meta={}, layers=LAYERS, publish_seconds=0.05) as writer:
        writer.append("iterations", {"iteration": [0], "loss": [1.0]})
        deadline = time.monotonic() + 10
        rows = 0
        while rows == 0 and time.monotonic() < deadline:
            with open_run(run_dir) as run:
                rows = run.num_iterations
        assert rows == 1
