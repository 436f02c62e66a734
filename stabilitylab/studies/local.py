"""Train runs in parallel processes on this machine. A worker trains several runs, so that it loads torch only once."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stabilitylab.config import Config
from stabilitylab.studies.restarting import attempt

if TYPE_CHECKING:
    from stabilitylab.train.trainer import Progress

Job = tuple[str, Config]
_TELL_EVERY = 0.2
"""Seconds between the messages of a worker. A worker exits at the next message if its parent has died."""


def train_side_by_side(
    jobs: Sequence[Job],
    root: Path,
    progress: Callable[[str, Progress], None] = lambda *_: None,
    *,
    workers: int | None = None,
) -> list[Path]:
    """Train named runs in parallel processes that share the cores, ``workers`` at a time, by default all. Returns their
    folders.

    Raises RuntimeError with the names of the runs that failed; the others are finished and kept.
    """
    failures = run_jobs(jobs, root, workers or len(jobs), progress, fresh=True)
    if failures:
        raise RuntimeError("; ".join(f"{name} failed: {why}" for name, why in failures.items()))
    return [root / name for name, _ in jobs]


def run_jobs(
    jobs: Sequence[Job],
    root: Path,
    num_workers: int,
    progress: Callable[[str, Progress], None] = lambda *_: None,
    ended: Callable[[str, str], None] = lambda *_: None,
    *,
    fresh: bool = False,
    time_is_up: Callable[[], bool] = lambda: False,
) -> dict[str, str]:
    """Train ``jobs``, ``num_workers`` at a time. Returns the failures by name.

    ``ended(name, why)`` is called after each run; ``why`` is empty on success. ``fresh``: a run that already exists
    counts as a failure; otherwise, an unfinished run is resumed. If a worker dies, its run fails and the worker is
    replaced. After ``time_is_up`` returns true, no further run is started.
    """
    waiting = deque(jobs)
    num_workers = max(1, min(num_workers, len(jobs)))
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // num_workers))
    workers: list[_Worker] = []
    failures: dict[str, str] = {}
    try:
        while waiting or workers:
            if time_is_up():
                waiting.clear()
            while waiting and len(workers) < num_workers:
                workers.append(_Worker.start(root, threads, fresh))
            for worker in workers:
                if worker.job is None and waiting:
                    worker.give(waiting.popleft())
            for worker in [w for w in workers if w.job is None]:
                worker.dismiss()
                workers.remove(worker)
            ready = wait([w.pipe for w in workers]) if workers else []
            for worker in [w for w in workers if w.pipe in ready]:
                name = worker.name
                message = worker.receive()
                if message is None:
                    workers.remove(worker)
                    message = f"its process ended with exit code {worker.process.exitcode}"
                if isinstance(message, str):
                    worker.job = None
                    if message:
                        failures[name] = message
                    if waiting and worker in workers and not time_is_up():
                        worker.give(waiting.popleft())  # trains while the finished run is summarised
                    ended(name, message)
                else:
                    progress(name, message)
    finally:
        for worker in workers:
            worker.process.terminate()
    return failures


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None

    @classmethod
    def start(cls, root: Path, threads: int, fresh: bool) -> _Worker:
        context = multiprocessing.get_context("spawn")  # fork is unsafe with torch's threads
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, root, threads, fresh))
        process.start()
        theirs.close()  # so that recv fails if the worker dies
        return cls(process, ours)

    @property
    def name(self) -> str:
        return self.job[0] if self.job else ""

    def give(self, job: Job) -> None:
        self.job = job
        self.pipe.send(job)

    def dismiss(self) -> None:
        self.pipe.send(None)
        self.process.join()

    def receive(self) -> Any:
        """Progress, the reason of a failure, an empty string on success, or None if the worker died."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return None


def _work(pipe: Connection, root: Path, threads: int, fresh: bool) -> None:
    import torch

    torch.set_num_threads(threads)
    last = 0.0

    def tell(state: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _TELL_EVERY or state.iteration == state.total:
            last = now
            pipe.send(state)

    try:
        while (job := pipe.recv()) is not None:
            name, config = job
            if fresh and (root / name).exists():
                pipe.send(f"run {name} already exists in {root}")
            else:
                pipe.send(attempt(config, root, name, tell))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return  # the parent died or was interrupted
