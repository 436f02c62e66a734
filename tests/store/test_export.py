"""A run as Parquet and CSV."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest

from stabilitylab.errors import StoreError
from stabilitylab.importers.csv import import_csv
from stabilitylab.store.export import export_run
from stabilitylab.store.locks import COMPACT_LOCK, try_lock
from stabilitylab.store.reader import open_run
from stabilitylab.store.writer import RunWriter
from tests.synthetic import planted_grads_csv


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_export_and_read_back(form: str, tmp_path: Path) -> None:
    planted_grads_csv(tmp_path / "grads.csv")
    run = import_csv(tmp_path / "runs", tmp_path / "grads.csv", name="r")
    files = export_run(run, tmp_path / "out", form)
    assert {f.name for f in files} == {f"{t}.{form}" for t in ("meta", "layers", "layer_stats", "events")}
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
    with pytest.raises(StoreError, match="has unmerged rows"):
        export_run(kept, tmp_path / "out")
    other.release()
    assert tmp_path / "out" / "scalars.parquet" in export_run(kept, tmp_path / "out")
