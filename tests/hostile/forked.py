"""Runs a command in a forked copy of this process: the real exit code and output, without the seconds that a start
takes. The parent must not have started a DuckDB or a thread."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MEMORY = 6 << 30
"""Address space of a command: what asks for more is a fault, not a dead machine."""


@dataclass(frozen=True)
class Outcome:
    """``code``: the exit code, minus the signal that ended it; ``seconds`` since it was started."""

    code: int
    out: str
    err: str
    seconds: float
    hung: bool = False

    @property
    def traced(self) -> bool:
        return "Traceback (most recent call last)" in self.err


def load() -> None:
    """Import once, here, all that a command would: but for the frameworks, which take seconds and are not attacked."""
    import stabilitylab

    for module in pkgutil.walk_packages(stabilitylab.__path__, "stabilitylab."):
        if not any(part in module.name for part in ("lightning", "huggingface", "integrations", "__main__")):
            importlib.import_module(module.name)


def start(work: Callable[[], None], scratch: Path) -> int:
    """Fork, and do ``work`` in the child with its output in ``scratch``. Returns the child's process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(file, number)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        work()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def finish(pid: int, scratch: Path, started: float, limit: float) -> Outcome:
    """Wait for a child, at most ``limit`` seconds of processor time (ten times that on the clock)."""
    hung = False
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if not hung and (_processor_seconds(pid) > limit or time.monotonic() - started > 10 * limit):
            hung = True
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    files = [scratch / name for name in ("out", "err")]  # neither, of one that was killed at once
    texts = [file.read_text(encoding="utf-8", errors="replace") if file.exists() else "" for file in files]
    return Outcome(os.waitstatus_to_exitcode(status), *texts, usage.ru_utime + usage.ru_stime, hung)


def run(work: Callable[[], None], scratch: Path, limit: float = 30.0) -> Outcome:
    started = time.monotonic()
    return finish(start(work, scratch), scratch, started, limit)


def stablab(arguments: Sequence[str]) -> Callable[[], None]:
    """The command line with ``arguments``, as `run` takes it."""

    def work() -> None:
        from stabilitylab.cli import main

        sys.argv = ["stablab", *arguments]
        main()

    return work


def _processor_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
