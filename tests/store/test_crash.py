"""What SIGKILL may cost: the flush in memory, nothing else."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from stabilitylab.errors import RunBusy
from stabilitylab.store import compaction
from stabilitylab.store.listing import list_runs
from stabilitylab.store.reader import open_run
from stabilitylab.store.writer import RunWriter
from tests.store.conftest import add, start

InProcess = Callable[[str], subprocess.Popen[str]]


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def crash(in_process: InProcess) -> None:
    """A writer with 30 published iterations and 5 in memory, killed."""
    process = in_process(
        """
        writer = start(run_dir)
        for begin in (0, 10, 20):
            add(writer, range(begin, begin + 10))
            writer.publish(wait=True)
        add(writer, range(30, 35))
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert process.wait() == -9


def test_a_killed_run_lacks_only_the_unpublished(run_dir: Path, in_process: InProcess) -> None:
    crash(in_process)
    assert not (run_dir / "run.duckdb").exists()
    assert list_runs(run_dir.parent)[0].status == "crashed"
    assert not (run_dir / "run.duckdb").exists()  # listing merges nothing
    with open_run(run_dir) as run:
        assert run.status == "crashed"
        assert run.meta["status"] == "crashed"
        assert run.num_iterations == 30
        assert run.layer_series()[2][0].tolist() == list(range(30))
        assert run.problems == run.verify() == []
    assert [p.name for p in run_dir.iterdir()] == ["run.duckdb"]


def test_a_living_writer_is_seen_and_cannot_be_resumed(run_dir: Path, in_process: InProcess) -> None:
    process = in_process(
        """
        writer = start(run_dir)
        add(writer, range(4))
        writer.publish(wait=True)
        print("ready", flush=True)
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert first_line(process) == "ready"
    with open_run(run_dir) as run:
        assert run.status == "running"
        assert run.num_iterations == 4
    with pytest.raises(RunBusy, match="being written by another process"):
        RunWriter.resume(run_dir, 4)
    process.communicate("\n")
    with open_run(run_dir) as run:
        assert run.status == "crashed"
        assert run.num_iterations == 4


@pytest.mark.parametrize(
    ("moment", "call"), [("_build", 1), ("sync", 1), ("sync", 2), ("_remove_segments", 1), ("clean_folder", 1)]
)
def test_a_kill_during_compaction_costs_nothing(run_dir: Path, in_process: InProcess, moment: str, call: int) -> None:
    process = in_process(
        f"""
        from stabilitylab.store import compaction
        writer = start(run_dir)
        add(writer, range(10))
        writer.publish(wait=True)
        add(writer, range(10, 20))
        real, calls = compaction.{moment}, []
        def die(*args, **kwargs):
            calls.append(args)
            if {moment!r} == "_build" or len(calls) < {call}:
                real(*args, **kwargs)  # after _build, the temporary file is complete
            if len(calls) == {call}:
                os.kill(os.getpid(), signal.SIGKILL)
        compaction.{moment} = die
        writer.close()
        """
    )
    assert process.wait() == -9
    for _ in range(2):
        with open_run(run_dir) as run:
            assert run.layer_series()[0][0].tolist() == list(range(20))
            assert run.verify() == []
            assert run.status == "finished"
    with RunWriter.resume(run_dir, 20) as writer:
        add(writer, range(20, 22))
    with open_run(run_dir) as run:
        assert run.layer_series()[0][0].tolist() == list(range(22))
    assert [p.name for p in run_dir.iterdir()] == ["run.duckdb"]


def test_a_reader_that_cannot_merge_reads_all_the_same(
    run_dir: Path, in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(in_process)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(compaction, "_build", refuse)
    with open_run(run_dir) as run:
        assert run.status == "crashed"
        assert run.query("SELECT value FROM meta WHERE key = 'status'").fetchone() == ("crashed",)
        assert run.num_iterations == 30
    monkeypatch.undo()
    with open_run(run_dir) as run:
        assert run.num_iterations == 30
    assert (run_dir / "run.duckdb").exists()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def test_a_flipped_byte_is_named_and_the_rest_reads(run_dir: Path, in_process: InProcess) -> None:
    crash(in_process)
    flip(run_dir / "segments" / "layer_stats-000002.parquet")
    expected = (
        "segment layer_stats-000002.parquet does not match its checksum: "
        "left out 30 rows of layer_stats of iterations 10..19"
    )
    with open_run(run_dir, merge=False) as run:
        assert run.problems == [expected]
    for _ in range(2):
        with open_run(run_dir) as run:
            assert run.problems[0] == expected
            assert run.layer_series()[0][0].tolist() == [*range(10), *range(20, 30)]
            assert run.num_iterations == 30
            assert len(run.table("iterations")["iteration"]) == 30
            assert any("layer_stats lacks 10 iterations, first after iteration 9" in p for p in run.problems)
            assert expected in [event.detail for event in run.events() if event.kind == "problem"]
    assert (run_dir / "damaged" / "layer_stats-000002.parquet").exists()


def test_a_missing_segment_and_lost_layer_names(run_dir: Path, in_process: InProcess) -> None:
    crash(in_process)
    (run_dir / "segments" / "iterations-000003.parquet").unlink()
    flip(run_dir / "segments" / "layers-000000.parquet")
    with open_run(run_dir) as run:
        assert len(run.problems) == 2
        assert any("iterations-000003.parquet is missing: left out 10 rows" in p for p in run.problems)
        assert [layer.name for layer in run.layers()] == ["layer_0", "layer_1", "layer_2"]
        assert run.num_iterations == 30


@pytest.mark.parametrize("damage", ["flip", "empty", "not json"])
def test_a_damaged_manifest_costs_the_checks_not_the_rows(run_dir: Path, in_process: InProcess, damage: str) -> None:
    crash(in_process)
    path = run_dir / "segments" / "manifest.json"
    if damage == "flip":
        flip(path)
    else:
        path.write_text("" if damage == "empty" else json.dumps([1]))
    with open_run(run_dir) as run:
        assert "manifest.json is damaged" in run.problems[0]
        assert run.num_iterations == 30
        assert run.status == "crashed"
        assert run.meta["run_id"] == "run_001"


def test_double_rows_are_told(run_dir: Path) -> None:
    with start(run_dir) as writer:
        add(writer, range(5))
        add(writer, range(4, 6))
    with open_run(run_dir) as run:
        assert "layer_stats has 3 duplicate rows, first at iteration 4, layer 0" in run.problems
        assert "iterations has 1 duplicate rows" in run.problems
        assert run.problems == run.verify()


def test_a_forked_worker_does_not_keep_a_dead_trainer_alive(run_dir: Path, in_process: InProcess) -> None:
    process = in_process(
        """
        import time
        writer = start(run_dir)
        add(writer, range(4))
        writer.publish(wait=True)
        if os.fork() == 0:
            print("worker", flush=True)
            sys.stdin.readline()
            os._exit(0)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert first_line(process) == "worker"
    assert process.wait() == -9
    with open_run(run_dir) as run:
        assert run.status == "crashed"
        assert run.num_iterations == 4
    process.communicate("\n")


def test_a_broken_file_beside_whole_segments_is_replaced(run_dir: Path, in_process: InProcess) -> None:
    crash(in_process)
    (run_dir / "run.duckdb").write_text("half a file")
    with open_run(run_dir) as run:
        assert run.num_iterations == 30
