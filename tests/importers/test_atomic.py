"""A run appears whole or not at all, whenever an import dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stabilitylab.errors import StoreError
from stabilitylab.importers import write
from stabilitylab.importers.registry import import_log
from stabilitylab.store.writer import RunWriter
from tests.importers.planted import assert_holds, bring, planted
from tests.importers.test_formats import FORMATS
from tests.importers.test_tensorboard import write_scalars

# Announces when reading is over, so that kills fall on the writing.
SLOW_WRITER = """
import sys, time
from pathlib import Path
from stabilitylab.importers import write
from stabilitylab.importers.registry import import_log
whole = write.write_runs_whole
def announce(root, runs):
    print("writing", flush=True)
    return whole(root, runs)
write.write_runs_whole = announce
import_log(Path(sys.argv[1]), Path(sys.argv[2]), name="kept")
"""


def kill_and_repeat(root: Path, log: Path, seconds: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, str(root), str(log)], stdout=subprocess.PIPE, env={**os.environ}
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    process.stdout.close()
    if killed and not (root / "kept").exists():
        bring(root, log, name="kept")
    assert_holds(root / "kept", planted())
    assert [path.name for path in root.iterdir()] == ["kept"]


def test_a_killed_import_takes_no_name_and_leaves_nothing(tmp_path: Path) -> None:
    kind = "wide csv"
    (tmp_path / "log").mkdir()
    log = FORMATS[kind][1](tmp_path / "log")
    kill_and_repeat(tmp_path / "runs", log, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*FORMATS, "tensorboard"])
def test_an_import_of_each_format_is_killed_and_repeated(kind: str, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    if kind == "tensorboard":
        log = tmp_path / "log"
        write_scalars(log, planted())
    else:
        log = FORMATS[kind][1](tmp_path / "log")
    for attempt in range(3):
        kill_and_repeat(tmp_path / f"runs{attempt}", log, random.Random(attempt).uniform(0, 0.3))


def test_if_one_of_several_runs_fails_none_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (0, 1):
        write_scalars(tmp_path / "tb" / f"run_{seed}", planted(seed=seed))
    (tmp_path / "runs" / "x-run_1").mkdir(parents=True)
    with pytest.raises(StoreError, match="'x-run_1' already exists"):
        import_log(tmp_path / "runs", tmp_path / "tb", name="x")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["x-run_1"]

    calls = []

    def fails_later(writer: RunWriter, table: str, columns: dict[str, object]) -> None:
        calls.append(table)
        if len(calls) > 7:
            raise OSError("full")

    monkeypatch.setattr(write, "_append", fails_later)
    with pytest.raises(OSError, match="full"):
        import_log(tmp_path / "runs", tmp_path / "tb", name="y")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["x-run_1"]
