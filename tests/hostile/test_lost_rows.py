"""What is recorded stays: through text of any kind, moved folders, damaged manifests, failed imports and kills."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from stabilitylab import unfinished
from stabilitylab.errors import RunBroken, RunExists, StoreError, StoreWarning
from stabilitylab.store import export
from stabilitylab.store.export import export_run
from stabilitylab.store.listing import list_runs
from stabilitylab.store.location import claim_run
from stabilitylab.store.publisher import Publisher
from stabilitylab.store.reader import open_run
from stabilitylab.store.whole import write_run_whole
from stabilitylab.store.writer import LayerRow, RunWriter
from tests.hostile.runs import LAYERS, contents, fill, make_run


def start(run_dir: Path) -> RunWriter:
    run_dir.mkdir(parents=True, exist_ok=True)
    return RunWriter.create(run_dir, config={}, meta={}, layers=LAYERS, retry_seconds=0.05)


def test_text_that_is_not_utf8_is_repaired_and_holds_nothing_up(tmp_path: Path) -> None:
    run_dir = tmp_path / "run_001"
    run_dir.mkdir()
    bad = os.fsdecode(b"caf\xe9.png")
    writer = RunWriter.create(
        run_dir, config={"file": bad}, meta={"host": bad}, layers=[LayerRow(0, bad, 0, 1), LayerRow(1, "b", 1, 1)]
    )
    fill(writer, 0, 10)
    writer.event(3, "bad-image", bad)
    writer.event(4, "text", "a\x00b")
    writer.append("scalars", {"iteration": [1], "name": [bad], "value": [2.0]})
    writer.publish(wait=True)
    fill(writer, 10, 20)
    writer.close()
    assert writer.unwritten == []
    with open_run(run_dir) as reader:
        assert reader.num_iterations == 20
        assert [event.detail for event in reader.events()] == ["caf\\udce9.png", "a\x00b"]
        assert reader.layers()[0].name == reader.meta["host"] == "caf\\udce9.png"


def test_numbers_beyond_a_column_are_said_not_made_infinite_or_zero(tmp_path: Path) -> None:
    writer = start(tmp_path / "run_001")
    norms = [1e39, 1e-46, float("nan"), float("inf"), 0.0]
    with pytest.warns(StoreWarning, match=r"2 values of layer_stats\.grad_norm do not fit FLOAT"):
        writer.append("layer_stats", {"iteration": np.arange(5), "layer_id": 0, "grad_norm": norms})
    with pytest.warns(StoreWarning, match=r"1 values of iterations\.iteration do not fit INTEGER"):
        writer.append("iterations", {"iteration": [1, 2**31 + 1, 3], "loss": [1.0, 2.0, 3.0]})
    fill(writer, 10, 20)
    writer.close()
    with open_run(tmp_path / "run_001") as reader:
        stored = reader.table("layer_stats")["grad_norm"][:5]
        np.testing.assert_array_equal(stored[2:], np.float32(norms[2:]))
        assert 3e38 < stored[0] < np.inf
        assert stored[1] > 0
        assert reader.table("iterations")["iteration"][:2].tolist() == [1, 3]
        assert [event.kind for event in reader.events()].count("out-of-range") == 3


def test_a_batch_that_can_never_be_written_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason, what came with it and after it is stored."""
    real = Publisher.publish

    def refuse(self: Publisher, rows: dict) -> None:
        for part in rows.get("scalars", []):
            if 13 in part.columns["iteration"].values:
                raise ValueError("these rows, never")
        real(self, rows)

    monkeypatch.setattr(Publisher, "publish", refuse)
    writer = start(tmp_path / "run_001")
    writer.append("scalars", {"iteration": [12], "name": "x", "value": 1.0})
    writer.append("scalars", {"iteration": [13], "name": "x", "value": 1.0})
    fill(writer, 0, 10)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        writer.publish(wait=True)
        fill(writer, 10, 20)
        writer.close()
    assert "1 rows of scalars cannot be stored: these rows, never" in str(said[0].message)
    with open_run(tmp_path / "run_001") as reader:
        assert reader.num_iterations == 20
        assert reader.table("scalars")["iteration"].tolist() == [12]
        assert "1 rows of scalars, iterations 13..13, were not written" in reader.events()[0].detail
        assert reader.verify() == []


def test_a_chdir_and_a_move_lose_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    writer = start(Path("runs/a"))
    fill(writer, 0, 20)
    os.chdir("elsewhere")
    writer.publish(wait=True)
    fill(writer, 20, 40)
    (tmp_path / "runs").rename(tmp_path / "moved")
    writer.publish(wait=True)
    fill(writer, 40, 60)
    (tmp_path / "moved" / "a").rename(tmp_path / "b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.close()
    assert writer.unwritten == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "elsewhere", "moved"]
    with open_run(tmp_path / "b") as reader:
        assert reader.table("iterations")["iteration"].tolist() == list(range(60))
        assert (reader.name, reader.verify()) == ("b", [])


def test_a_folder_that_is_gone_is_said_to_be_gone(tmp_path: Path) -> None:
    writer = start(tmp_path / "a")
    fill(writer, 0, 20)
    writer.publish(wait=True)
    shutil.rmtree(tmp_path / "a")
    fill(writer, 20, 40)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        writer.close()
    text = " ".join(str(warning.message) for warning in said)
    assert "its folder is gone" in text
    assert "kept" not in text
    assert writer.unwritten


@pytest.mark.parametrize("resumed", [False, True])
def test_damaged_manifests_destroy_no_database(resumed: bool, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run_001", 60)
    if resumed:
        writer = RunWriter.resume(run_dir, 60)
        fill(writer, 60, 80)
        writer.publish(wait=True)
        writer._closed = True
        writer._lock.release()
    else:
        (run_dir / "segments").mkdir()
    for name in ("manifest.json", "start.json"):
        (run_dir / "segments" / name).write_text("{")
    before = contents(run_dir)
    with open_run(run_dir) as reader:
        assert reader.num_iterations == 60
        assert "manifest.json and start.json are damaged" in reader.problems[0]
    with pytest.raises(StoreError, match="neither was changed"):
        RunWriter.resume(run_dir, 60)
    assert contents(run_dir) == before


def test_a_manifest_reaches_no_file_outside_its_folder(tmp_path: Path) -> None:
    """Neither to read it nor, when the segments go, to move or delete it."""
    private = make_run(tmp_path / "private", finish=False) / "segments"
    outside = next(path for path in private.glob("iterations-*.parquet") if path.stat().st_size > 600)
    run_dir = make_run(tmp_path / "run_001", finish=False)
    link = run_dir / "segments" / "iterations-000099.parquet"
    link.symlink_to(outside)
    manifest = json.loads((run_dir / "segments" / "manifest.json").read_text())
    body = json.loads(manifest["body"])
    body["segments"].append(body["segments"][0] | {"file": f"../../private/segments/{outside.name}", "sha256": ""})
    import hashlib

    text = json.dumps(body)
    (run_dir / "segments" / "manifest.json").write_text(
        json.dumps({"body": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    )
    before = contents(tmp_path / "private")
    with open_run(run_dir) as reader:
        assert reader.num_iterations == 60
        assert reader.problems
    assert contents(tmp_path / "private") == before


def test_other_files_in_a_runs_folder_stay(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run_001", finish=False)
    for name in ("segments/notes.txt", ".run.duckdb.backup", "segments/mine/deep.txt", "config.toml.bak"):
        (run_dir / name).parent.mkdir(exist_ok=True)
        (run_dir / name).write_text("mine")
    with open_run(run_dir) as reader:
        assert reader.num_iterations == 60
    assert set(contents(run_dir)) == {
        "run.duckdb", "segments/notes.txt", ".run.duckdb.backup", "segments/mine/deep.txt", "config.toml.bak",
    }  # fmt: skip
    writer = RunWriter.resume(run_dir, 60)
    fill(writer, 60, 70)
    writer.close()
    assert "segments/notes.txt" in contents(run_dir)
    (listed,) = list_runs(tmp_path)
    assert listed.iterations == 70


def test_segments_beside_another_runs_database_are_not_merged_into_it(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run_001", finish=False)
    other = make_run(tmp_path / "run_002", 20)
    shutil.copy(other / "run.duckdb", run_dir / "run.duckdb")
    before = contents(run_dir)
    with open_run(run_dir) as reader:
        assert reader.num_iterations == 60
        assert "belong to different runs" in reader.problems[0]
    assert contents(run_dir) == before


def test_an_import_that_fails_leaves_no_run_and_takes_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "runs"
    given = {"config": {}, "meta": {}, "layers": LAYERS}

    def refuse(self: Publisher, rows: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        real = Publisher.publish
        calls: list[int] = []
        patch.setattr(
            Publisher, "publish", lambda self, rows: calls.append(1) or (refuse if len(calls) > 1 else real)(self, rows)
        )
        with pytest.raises(StoreError, match=r"nothing was imported into .*: 60 rows could not be written"):
            write_run_whole(root, "a", lambda writer: fill(writer, 0, 20), **given)
    assert list(root.iterdir()) == []
    with pytest.raises(ZeroDivisionError):
        write_run_whole(root, "a", lambda writer: 1 / 0, **given)  # type: ignore[arg-type, return-value]
    assert list(root.iterdir()) == []
    assert write_run_whole(root, "a", lambda writer: fill(writer, 0, 20), **given) == root / "a"
    assert write_run_whole(root, None, lambda writer: fill(writer, 0, 20), **given) == root / "run_001"
    with pytest.raises(RunExists, match="run 'a' already exists"):
        write_run_whole(root, "a", lambda writer: fill(writer, 0, 20), **given)
    with open_run(root / "run_001") as reader:
        assert (reader.status, reader.num_iterations, reader.verify()) == ("finished", 20, [])


def test_what_a_killed_import_left_goes_with_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, mine = tmp_path / ".import-7-0123abcd", tmp_path / ".import-me"
    for folder in (dead, mine):
        folder.mkdir()
    monkeypatch.setattr(unfinished, "_lives", lambda pid: pid != 7)
    alive = tmp_path / f".import-{os.getpid()}-0123abcd"
    alive.mkdir()
    write_run_whole(tmp_path, "a", lambda writer: None, config={}, meta={}, layers=LAYERS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, mine.name, "a"])
    assert [run.name for run in list_runs(tmp_path)] == ["a"]


def test_an_export_works_below_any_folder_and_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "why [a] * 100%' é"
    run_dir = make_run(root / "run_001")
    out = root / "out?\\"
    assert [path.name for path in export_run(run_dir, out, "csv")] == [
        "meta.csv", "layers.csv", "layer_stats.csv", "iterations.csv", "evals.csv",
    ]  # fmt: skip
    assert (out / "evals.csv").read_text().splitlines()[1] == "10,knn_top1,0.5,100"
    with pytest.raises(StoreError, match="exists; export into another folder"):
        export_run(run_dir, out, "csv")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "_move", full)
    with pytest.raises(StoreError, match="No space left"):
        export_run(run_dir, tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []


@pytest.mark.parametrize("name", ["why?", "a\\b"])
def test_a_path_that_duckdb_cannot_open_is_refused_before_anything_is_recorded(name: str, tmp_path: Path) -> None:
    root = tmp_path / name / "runs"
    for opens in (claim_run, open_run, lambda path: write_run_whole(path, "a", fill, config={}, meta={}, layers=[])):
        with pytest.raises(StoreError, match=r"DuckDB cannot open a file below .*; rename that folder or choose"):
            opens(root)
    assert not root.exists()


def test_names_that_no_folder_can_have_are_not_found(tmp_path: Path) -> None:
    from stabilitylab.errors import RunNotFound
    from stabilitylab.store.location import find_run

    make_run(tmp_path / "run_001")
    for name in ("a" * 300, "a\0b", "~nobody-by-this-name/run", "x/" + "y" * 5000):
        with pytest.raises(RunNotFound) as refused:
            find_run(tmp_path, name)
        assert len(str(refused.value)) < 600
    with pytest.raises(RunBroken):
        open_run(tmp_path / "nowhere")


def test_what_a_merge_left_that_was_killed_while_it_tidied_goes_with_the_next_look(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run_001")
    shutil.copytree(make_run(tmp_path / "run_002", finish=False) / "segments", run_dir / "segments")
    (run_dir / "segments" / "manifest.json").unlink()
    with open_run(run_dir) as reader:
        assert reader.num_iterations == 60
    assert [path.name for path in run_dir.iterdir()] == ["run.duckdb"]
