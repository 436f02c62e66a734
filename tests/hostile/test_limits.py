"""Processor time, memory and interruption: bounded for any input."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import stabilitylab as sl
from stabilitylab.errors import RunBroken, StoreError
from stabilitylab.store import database, listing, segments, snapshot
from stabilitylab.store.writer import LayerRow, RunWriter
from tests.commands import stablab_here
from tests.hostile.runs import make_run

LAYERS = [LayerRow(i, name, i, 10) for i, name in enumerate(("patch_embed", "blocks.0", "head"))]


def write(run_dir: Path, iteration: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    with RunWriter.create(run_dir, config={}, meta={}, layers=LAYERS) as writer:
        for layer in LAYERS:
            norm = np.exp(rng.normal(0, 0.1, len(iteration)))
            norm[300::500] *= 30
            writer.append("layer_stats", {"iteration": iteration, "layer_id": layer.layer_id, "grad_norm": norm})
        writer.append("iterations", {"iteration": iteration, "loss": rng.normal(1, 0.01, len(iteration))})
        writer.append("evals", {"iteration": iteration[::20], "metric": "val_acc", "value": rng.uniform(0.4, 0.6, 100)})


@pytest.mark.parametrize("kind", ["late", "images", "gap"])
def test_memory_follows_rows_not_iteration_numbers(kind: str, tmp_path: Path) -> None:
    """2,000 rows whose iterations reach 2e9. Memory by iteration number would be 16 gigabytes a series. The limit
    is one of addresses, which libraries reserve by the gigabyte on a machine with many cores."""
    t = np.arange(2000)
    iterations = {"late": 10**9 + t, "images": 10**6 * t, "gap": np.where(t < 1000, t, t + 2 * 10**9)}
    write(tmp_path / kind, iterations[kind])
    code = f"""
import resource
import stabilitylab as sl
resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
run = sl.open_run({str(tmp_path / kind)!r})
a = run.analyze()
run.report({str(tmp_path / "page.html")!r})
print(len(a.spikes), len(run.signal()), len(run.plot("spikes").data))
status = open("/proc/self/status").read()  # ru_maxrss would include the peak of the process that started this one
print(int(status.split("VmHWM:")[1].split()[0]) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    spikes, rows, _, megabytes = done.stdout.split()
    assert int(megabytes) < 800  # 280 with the imports
    assert int(rows) == 2000
    assert int(spikes) >= 9  # three planted in each layer


def test_a_list_of_runs_asks_one_question_for_fifty_databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To attach and detach a file takes one statement each; nothing else may grow with the number of runs so fast."""
    make_run(tmp_path / "run_000", 4)
    for i in range(1, 120):
        shutil.copytree(tmp_path / "run_000", tmp_path / f"run_{i:03d}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.duckdb").write_bytes(b"x" * 5000)
    statements: list[str] = []
    real = listing.connect

    class Counted:
        def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
            self.con = con

        def __getattr__(self, name: str) -> Any:
            return getattr(self.con, name)

        def execute(self, sql: str, *rest: Any) -> Any:
            statements.append(sql)
            return self.con.execute(sql, *rest)

        def __enter__(self) -> Counted:
            return self

        def __exit__(self, *error: object) -> None:
            self.con.close()

    monkeypatch.setattr(listing, "connect", lambda **options: Counted(real(**options)))
    found = listing.list_runs(tmp_path)
    assert [run.name for run in found if run.status == "broken"] == ["broken"]
    assert [run.iterations for run in found if run.status == "finished"] == [4] * 120
    questions = [sql for sql in statements if sql.startswith("SELECT")]
    assert len(questions) <= 2 * 3 + 2 * 50  # the fifty beside the broken one are asked one by one


def test_a_query_that_does_not_end_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "SECONDS", 0.2)
    with (
        database.connect(threads=1) as con,
        pytest.raises(RunBroken, match=r"run\.duckdb takes more than 0\.2 s to open; restore it from a copy"),
        database.limited(con, tmp_path / "run.duckdb"),
    ):
        con.execute("SELECT count(*) FROM range(1000000000000) a WHERE a.range % 7 = 3").fetchall()


def test_too_little_memory_does_not_make_a_run_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "run", np.arange(2000))
    monkeypatch.setattr(snapshot, "MEMORY_LIMIT", "300KB")
    with pytest.raises(StoreError, match=r"there is not enough memory to read .*run\.duckdb: ") as caught:
        sl.open_run(tmp_path / "run").signal()
    assert not isinstance(caught.value, RunBroken)
    assert "copy" not in str(caught.value)


def test_a_meta_of_a_million_rows_is_refused_before_it_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 4)
    with duckdb.connect(str(run / "run.duckdb")) as con:
        con.execute("INSERT INTO meta SELECT 'k' || range, repeat('x', 1000) FROM range(100000)")
    with pytest.raises(RunBroken, match=r"meta claims 100,\d+ rows, too many"):
        sl.open_run(run)


@pytest.mark.parametrize(
    "send",
    ["os.kill(os.getpid(), signal.SIGINT)", "signal.pthread_kill(threading.get_ident(), signal.SIGINT)"],
    ids=["process", "another thread"],
)
def test_ctrl_c_ends_a_query_in_one_line(send: str, tmp_path: Path) -> None:
    """A signal that another thread receives does not wake the main thread."""
    make_run(tmp_path / "run", 4)
    code = f"""
import os, signal, sys, threading
from stabilitylab.cli import main
from stabilitylab.store.reader import RunReader
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit SIG_IGN
real = RunReader.query
def interrupted(*arguments):
    threading.Timer(0.5, lambda: {send}).start()
    return real(*arguments)
RunReader.query = interrupted
query = "select count(*) from range(1000000000000) a where a.range % 7 = 3"
sys.argv = ["stablab", "sql", "run", query, "--runs-dir", {str(tmp_path)!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip() == "stablab: interrupted"  # click ends the line of the terminal that shows ^C


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "g.csv").write_text("iteration,layer,grad_norm\n" + "".join(f"{t},a,{t + 1}\n" for t in range(40)))
    said = "the path contains bytes that are not UTF-8; rename that folder or choose another"
    imported = ["import", "csv", "--grads", str(folder / "g.csv"), "--runs-dir", str(folder / "runs")]
    there = subprocess.run([sys.executable, "-m", "stabilitylab", *imported], capture_output=True, check=False)
    assert (there.returncode, there.stderr.count(b"\n")) == (2, 1)
    assert said.encode() in there.stderr
    trained = ["train", "--iterations", "2", "--log-grads", "--runs-dir", str(folder / "runs")]
    here = stablab_here(*trained, cwd=tmp_path)
    assert (here.returncode, here.stderr.count("\n")) == (2, 1)
    assert said in here.stderr
    assert [path.name for path in folder.iterdir()] == ["g.csv"]


def test_a_disk_that_is_full_at_the_start_is_one_line_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segments, "write_segment", full)
    monkeypatch.setattr("stabilitylab.store.publisher.write_segment", full)
    monkeypatch.setattr("stabilitylab.store.manifest.write_manifest", full, raising=False)
    with pytest.raises(StoreError, match="No space left on device"):
        sl.record(torch.nn.Linear(2, 1), run="full", runs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
