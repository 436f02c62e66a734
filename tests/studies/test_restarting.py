"""A study finds existing folders in place of a run, and deletes none of them."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from stabilitylab.config import Config, resolve
from stabilitylab.errors import RunBusy, StoreError
from stabilitylab.store.locks import lock_for_writing
from stabilitylab.store.reader import open_run
from stabilitylab.store.writer import LayerRow, RunWriter
from stabilitylab.studies import restarting
from stabilitylab.studies.restarting import attempt, is_complete, train_or_resume

ITERATIONS = 3


def config() -> Config:
    given = {
        "data": {"name": "digits"},
        "model": {"arch": "vit_nano"},
        "train": {"iterations": ITERATIONS, "batch_size": 16},
    }
    return resolve(given, {}, {})


def recorded(run_dir: Path, *, status: str = "stopped", rows: int = 50, checkpoint: bool = True) -> None:
    """A run of another day, 50 rows long, without its checkpoints."""
    run_dir.mkdir(parents=True)
    (run_dir / "config.toml").write_text(config().to_toml())
    writer = RunWriter.create(run_dir, config={}, meta={}, layers=[LayerRow(0, "a", 0, 1)])
    if rows:
        writer.append("iterations", {"iteration": np.arange(rows), "loss": np.ones(rows)})
    if checkpoint:
        writer.event(rows, "checkpoint", "iteration-000050.pt")
    writer.close(status)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("writer.lock", "compact.lock")
    }


def newer_schema(run_dir: Path) -> None:
    with duckdb.connect(str(run_dir / "run.duckdb")) as con:
        con.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")


def damaged(run_dir: Path) -> None:
    data = bytearray((run_dir / "run.duckdb").read_bytes())
    data[100] ^= 1
    (run_dir / "run.duckdb").write_bytes(data)


def foreign(run_dir: Path) -> None:
    shutil.rmtree(run_dir)
    run_dir.mkdir()
    (run_dir / "thesis.txt").write_text("mine")


def left_segments(run_dir: Path) -> None:
    """Rows that a manifest no longer names are still rows."""
    shutil.rmtree(run_dir)
    (run_dir / "segments").mkdir(parents=True)
    (run_dir / "segments" / "iterations-000001.parquet").write_bytes(b"PAR1PAR1")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda run_dir: None, "its checkpoints are missing"),
        (newer_schema, "schema version 99"),
        (damaged, "cannot be read"),
        (foreign, "contains other files"),
        (left_segments, "contains other files"),
    ],
    ids=["stopped", "newer schema", "damaged", "foreign", "segments"],
)
def test_a_run_that_cannot_be_resumed_is_refused_and_stays(
    harm: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "a"
    recorded(run_dir)
    harm(run_dir)
    before = contents(run_dir)
    with pytest.raises(StoreError, match=reason) as refused:
        train_or_resume(config(), tmp_path, "a")
    assert "a" in str(refused.value)
    assert contents(run_dir) == before
    assert reason in attempt(config(), tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_run_stopped_by_hand_before_its_first_checkpoint_is_refused(tmp_path: Path) -> None:
    recorded(tmp_path / "a", checkpoint=False)
    with pytest.raises(StoreError, match=r"it is stopped and has no checkpoint; it was not changed\. Restore"):
        train_or_resume(config(), tmp_path, "a")


def test_a_run_killed_before_its_first_checkpoint_starts_over_and_its_rows_stay(tmp_path: Path) -> None:
    recorded(tmp_path / "a", status="crashed", checkpoint=False, rows=7)
    (tmp_path / "a-killed-1").mkdir()
    assert train_or_resume(config(), tmp_path, "a") == tmp_path / "a"
    with open_run(tmp_path / "a-killed-2") as reader:
        assert reader.num_iterations == 7
    with open_run(tmp_path / "a") as reader:
        assert (reader.status, reader.num_iterations) == ("finished", ITERATIONS)


def test_a_claim_that_was_killed_before_it_recorded_anything_is_used(tmp_path: Path) -> None:
    (tmp_path / "a" / "segments").mkdir(parents=True)
    (tmp_path / "a" / "segments" / "writer.lock").touch()
    (tmp_path / "a" / "segments" / ".manifest.json.tmp").write_text(json.dumps({}))
    assert train_or_resume(config(), tmp_path, "a") == tmp_path / "a"
    with open_run(tmp_path / "a") as reader:
        assert (reader.status, reader.num_iterations) == ("finished", ITERATIONS)


def test_the_worker_of_a_killed_study_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It still writes its run for a moment, or begins one between the look at the folder and the claim."""
    recorded(tmp_path / "a", status="crashed", checkpoint=False, rows=7)
    lock = lock_for_writing(tmp_path / "a" / "segments")
    monkeypatch.setattr(restarting, "_PATIENCE", 0.1)
    with pytest.raises(RunBusy):
        train_or_resume(config(), tmp_path, "a")
    monkeypatch.setattr(restarting, "_PATIENCE", 60)
    threading.Timer(0.3, lock.release).start()
    assert train_or_resume(config(), tmp_path, "a") == tmp_path / "a"

    def claimed_by_another(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(restarting, "train_run", train)
        (tmp_path / "b").mkdir()
        return train(*args, **options)

    train = restarting.train_run
    monkeypatch.setattr(restarting, "train_run", claimed_by_another)
    assert train_or_resume(config(), tmp_path, "b") == tmp_path / "b"
    for name in "ab":
        assert is_complete(tmp_path / name)
