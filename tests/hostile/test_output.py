"""Terminals get no commands, spreadsheets no formulas, and ``-o`` breaks nothing that it names."""

from __future__ import annotations

import csv
import io
import os
import pty
import stat
import subprocess
import sys
import threading
from pathlib import Path

import duckdb
import numpy as np
import pytest

from stabilitylab.cli.terminal import SafeStream, console, visible
from stabilitylab.report.writing import write_atomically
from stabilitylab.store.spreadsheet import cell, cell_sql
from stabilitylab.store.writer import LayerRow, RunWriter

EVIL = "\x1b]0;owned\x07\x9b31m\u202edrow"


def evil_run(root: Path, name: str = "run_001") -> Path:
    """A run whose names hold terminal commands and formulas."""
    run_dir = root / name
    run_dir.mkdir(parents=True)
    layers = [LayerRow(0, EVIL, 0, 1), LayerRow(1, "=cmd|' /C calc'!A0", 1, 1)]
    with RunWriter.create(run_dir, config={"method": {"name": EVIL}}, meta={}, layers=layers) as writer:
        for layer in (0, 1):
            norms = np.ones(50)
            writer.append("layer_stats", {"iteration": np.arange(50), "layer_id": layer, "grad_norm": norms})
        writer.event(3, EVIL, EVIL)
    return run_dir


def test_a_regular_file_is_replaced_whole_and_keeps_its_permissions(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    target.chmod(0o640)
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    link = tmp_path / "page.html"
    link.symlink_to(tmp_path / "deep" / "real.html")  # which is not there yet
    for data in (b"one", b"two"):
        write_atomically(link, data)
        assert link.is_symlink()
        assert (tmp_path / "deep" / "real.html").read_bytes() == data


def test_a_pipe_is_written_into_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_atomically(pipe, b"page" * 50_000)
    reader.join(20)
    assert got == [b"page" * 50_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_terminal_stays_a_device() -> None:
    master, slave = pty.openpty()
    try:
        name = os.ttyname(slave)
        write_atomically(Path(name), b"page\n")
        assert os.read(master, 100).startswith(b"page")
        assert stat.S_ISCHR(Path(name).stat().st_mode)
    finally:
        os.close(master)
        os.close(slave)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, b"new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+cmd", "'+1+cmd"),
        ("@SUM(1)", "'@SUM(1)"),
        ("-2+3", "'-2+3"),
        ("\t=1", "'\t=1"),
        ("-1.5", "-1.5"),
        ("blocks.0", "blocks.0"),
        (-1.5, -1.5),
        (None, None),
    ],
)
def test_a_cell_is_no_formula(given: object, shown: object) -> None:
    assert cell(given) == shown
    if isinstance(given, str):
        with duckdb.connect() as con:
            assert con.execute(f"SELECT {cell_sql('x')} FROM (SELECT ? AS x)", [given]).fetchone() == (shown,)


def test_a_stream_writes_control_characters_out() -> None:
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream = SafeStream(raw)
    stream.write(f"a\tb\n{EVIL}é\udcff")
    stream.flush()
    written = raw.buffer.getvalue()  # type: ignore[attr-defined]
    assert written == b"a\tb\n\\x1b]0;owned\\x07\\x9b31m\\u202edrow\\xe9\\udcff"


def test_rich_keeps_its_colours_and_shows_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stdout", SafeStream(raw))
    console(force_terminal=True, color_system="standard", highlight=False).print("[red]x[/red]" + EVIL)
    assert "\x1b[31mx\x1b[0m" in raw.getvalue()
    assert visible(EVIL.replace("\x07", "")) in raw.getvalue()  # rich drops the bell
    assert "\x1b]" not in raw.getvalue()


def test_no_command_lets_a_name_reach_the_terminal(tmp_path: Path) -> None:
    evil_run(tmp_path / "runs")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "STABLAB_RUNS": str(tmp_path / "runs")}
    commands = [
        ["runs"],
        ["analyze", "run_001"],
        ["sql", "run_001", "select * from events"],
        ["sql", "run_001", "select name from layers", "--format", "csv"],
        ["sql", "run_001", f"select '{EVIL}' from nowhere"],
        ["analyze", EVIL],
    ]
    for arguments in commands:
        done = subprocess.run(
            [sys.executable, "-m", "stabilitylab", *arguments], env=environment, capture_output=True, check=False
        )
        text = done.stdout + done.stderr
        assert done.returncode == (2 if arguments[-1].endswith("nowhere") or EVIL in arguments else 0), text
        assert b"Traceback" not in text
        assert text
        assert not any(byte < 9 or 10 < byte < 32 or byte > 126 for byte in text), (arguments, text)
        if "csv" in arguments:
            rows = list(csv.reader(io.StringIO(done.stdout.decode())))
            assert rows[2][0].startswith("'=cmd")
