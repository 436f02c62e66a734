"""A resumed run has every iteration once."""

from pathlib import Path

import pytest

from stabilitylab.errors import RunBroken, StoreError
from stabilitylab.store.reader import open_run
from stabilitylab.store.schema import LayerRow
from stabilitylab.store.writer import RunWriter
from tests.store.conftest import LAYERS, add, start


def test_rows_past_the_resume_point_are_replaced(run_dir: Path) -> None:
    with start(run_dir) as writer:
        add(writer, range(20))
        writer.append("evals", {"iteration": [5, 15], "metric": "knn_top1", "value": [0.1, 0.2]})
        writer.append("scalars", {"iteration": [5, 15], "name": "s", "value": [0.1, 0.2]})
        writer.event(15, "checkpoint", "kept")
    writer = RunWriter.resume(run_dir, 12, meta={"device": "other"})
    add(writer, range(12, 16), offset=100)
    writer.publish(wait=True)

    def check(status: str) -> None:
        with open_run(run_dir) as run:
            assert run.status == status
            assert run.meta["device"] == "other"
            iteration, value = run.layer_series()[0]
            assert iteration.tolist() == list(range(16))
            assert value.tolist() == [*range(12), *range(112, 116)]
            assert run.evals()["knn_top1"]["iteration"].tolist() == [5]
            assert run.table("scalars")["iteration"].tolist() == [5]
            assert run.layers() == LAYERS
            events = [(e.iteration, e.kind, e.detail) for e in run.events()]
            assert events == [
                (12, "resume", "resumed at iteration 12; it was finished"),
                (15, "checkpoint", "kept"),
            ]
            assert run.verify() == []

    check("running")
    writer.close()
    check("finished")


def test_resumed_again_and_again(run_dir: Path) -> None:
    with start(run_dir) as writer:
        add(writer, range(10))
    for begin, end in ((8, 14), (3, 12), (12, 13)):
        with RunWriter.resume(run_dir, begin) as writer:
            add(writer, range(begin, end), offset=begin)
    with open_run(run_dir) as run:
        iteration, value = run.layer_series()[0]
        assert iteration.tolist() == list(range(13))
        assert value.tolist() == [0, 1, 2, *(i + 3 for i in range(3, 12)), 24]


def test_new_layers_and_config_replace_the_old(run_dir: Path) -> None:
    with start(run_dir) as writer:
        add(writer, range(10))
    frozen = [LayerRow(0, "patch_embed", 0, 100, False), *LAYERS[1:]]
    writer = RunWriter.resume(run_dir, 5, config={"mitigation": ["frozen-patch"]}, layers=frozen)
    with writer:
        writer.append("layer_stats", {"iteration": [5, 5], "layer_id": [1, 2], "grad_norm": [1.0, 1.0]})
    with open_run(run_dir) as run:
        assert run.layers() == frozen
        assert run.config == {"mitigation": ["frozen-patch"]}
        assert run.layer_series()[0][0].tolist() == list(range(5))
        assert run.layer_series()[1][0].tolist() == list(range(6))


def test_nothing_to_resume(run_dir: Path) -> None:
    run_dir.mkdir()
    with pytest.raises(RunBroken, match="contains no run to resume"):
        RunWriter.resume(run_dir, 0)
    with pytest.raises(StoreError, match="it must be 0 or more"):
        RunWriter.resume(run_dir, -1)
