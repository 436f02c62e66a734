"""A full disk must not stop training, and lost rows are always reported."""

import errno
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from stabilitylab.errors import StoreError, StoreWarning
from stabilitylab.store import compaction, publisher
from stabilitylab.store.reader import open_run
from tests.store.conftest import add, start

Switch = Callable[[bool], None]


@pytest.fixture
def disk_is_full(monkeypatch: pytest.MonkeyPatch) -> Switch:
    full = False
    real = publisher.write_segment

    def write(*args: object) -> object:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)  # type: ignore[arg-type]

    def switch(on: bool) -> None:
        nonlocal full
        full = on

    monkeypatch.setattr(publisher, "write_segment", write)
    return switch


@pytest.mark.filterwarnings("ignore::stabilitylab.errors.StoreWarning")
def test_rows_wait_and_are_written_when_there_is_room(run_dir: Path, disk_is_full: Switch) -> None:
    with start(run_dir, retry_seconds=0.05) as writer:
        disk_is_full(True)
        for begin in range(0, 30, 10):
            add(writer, range(begin, begin + 10))
            writer.publish(wait=True)
        with open_run(run_dir) as run:
            assert run.num_iterations == 0
        disk_is_full(False)
        with open_run(run_dir) as run:
            for _ in range(200):  # a busy machine takes longer than the retry interval
                if run.num_iterations == 30:
                    break
                time.sleep(0.05)
                run.refresh()
            assert run.num_iterations == 30
    with open_run(run_dir) as run:
        assert run.layer_series()[0][0].tolist() == list(range(30))
        assert run.verify() == []
        assert run.events() == []


@pytest.mark.filterwarnings("ignore::stabilitylab.errors.StoreWarning")
def test_a_disk_that_falls_behind_is_an_event(run_dir: Path, disk_is_full: Switch) -> None:
    with start(run_dir, retry_seconds=0.05) as writer:
        disk_is_full(True)
        for begin in range(0, 100, 10):
            add(writer, range(begin, begin + 10))
            writer.publish()
        disk_is_full(False)
    with open_run(run_dir) as run:
        assert [(e.kind, e.detail[:17]) for e in run.events()] == [("backlog", "the disk is slow:")]
        assert run.verify() == []


def test_rows_beyond_the_bound_are_counted(run_dir: Path, disk_is_full: Switch) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with start(run_dir, max_buffer_bytes=4000, retry_seconds=60) as writer:
            disk_is_full(True)
            for begin in range(0, 100, 10):
                add(writer, range(begin, begin + 10))
                writer.publish(wait=begin == 0)
            disk_is_full(False)
            add(writer, range(100, 101))
            writer.publish(wait=True)
            with open_run(run_dir) as run:
                events = [event for event in run.events() if event.kind == "rows_lost"]
    told = [str(w.message) for w in caught if w.category is StoreWarning]
    assert sum("cannot write to" in text and "No space left" in text for text in told) == 1
    assert sum("being dropped" in text for text in told) == 1
    with open_run(run_dir) as run:
        kept = len(run.table("layer_stats")["iteration"])
        assert [e for e in run.events() if e.kind == "rows_lost"] == events
        lost = sum(int(event.detail.split()[0]) for event in events if "layer_stats" in event.detail)
        assert kept + lost == 303
        assert kept > 0
        assert events[0].detail.endswith("were not written")
        assert len(run.table("iterations")["iteration"]) == 101


def test_close_on_a_full_disk_keeps_what_was_written(
    run_dir: Path, disk_is_full: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with start(run_dir) as writer:
            add(writer, range(10))
            writer.publish(wait=True)
            disk_is_full(True)
            add(writer, range(10, 20))
            monkeypatch.setattr(compaction, "_build", refuse)
    told = " ".join(str(w.message) for w in caught)
    assert "40 rows" in told
    assert "they are kept" in told
    monkeypatch.undo()
    with open_run(run_dir) as run:
        assert run.layer_series()[0][0].tolist() == list(range(10))
    assert (run_dir / "run.duckdb").exists()


def test_warnings_as_errors_do_not_end_training(run_dir: Path, disk_is_full: Switch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with start(run_dir, max_buffer_bytes=500, retry_seconds=0.01) as writer:
            disk_is_full(True)
            for begin in range(0, 100, 10):
                add(writer, range(begin, begin + 10))
                writer.publish()


def test_a_real_limit_on_file_size(run_dir: Path, in_process: Callable[[str], subprocess.Popen[str]]) -> None:
    process = in_process(
        """
        import resource, warnings
        warnings.simplefilter("ignore")
        with start(run_dir, retry_seconds=0.01) as writer:
            add(writer, range(10))
            writer.publish(wait=True)
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
            add(writer, range(10, 20))
            writer.publish(wait=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            add(writer, range(20, 30))
        """
    )
    assert process.wait() == 0
    with open_run(run_dir) as run:
        assert run.layer_series()[0][0].tolist() == list(range(30))
        assert run.status == "finished"


def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another folder with --runs-dir"):
        start(tmp_path / "file" / "run_001")
