"""From a configuration to a run in the store, and from a run in the store to what analysis reads."""

from __future__ import annotations

import multiprocessing
import os
import platform
import queue
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from stabilitylab.analysis.results import EvalCurve, LayerSeries, RunSeries
from stabilitylab.config import Config, ConfigError, from_dict, read_toml
from stabilitylab.store.location import claim_run
from stabilitylab.store.reader import RunReader, open_run
from stabilitylab.store.writer import LayerRow, RunWriter

if TYPE_CHECKING:
    from stabilitylab.train.probe import ProbeResult
    from stabilitylab.train.trainer import Progress, Trainer, TrainResult

_LIBRARIES = ("stabilitylab", "torch", "timm", "duckdb", "numpy")


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended."""

    path: Path
    result: TrainResult


def train_run(
    config: Config,
    root: Path,
    name: str | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    started: Callable[[Path], None] = lambda _: None,
) -> FinishedRun:
    """Train a run and record it under ``root``. Nothing is claimed before the configuration and data are known
    to be good. ``started`` is told the run's folder once it exists. Under ``torchrun`` or ``srun`` every process
    calls this; the one of rank 0 records."""
    from stabilitylab.train.distributed import describe
    from stabilitylab.train.trainer import Trainer

    trainer = Trainer(config, describe())
    if not trainer.world.main:
        return _follow(trainer)
    meta = provenance() | {"seed": str(config.train.seed), "device": str(trainer.device)}
    meta["processes"] = str(trainer.world.size)
    run_dir = claim_run(root, name)
    (run_dir / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    writer = RunWriter.create(run_dir, config=config.model_dump(mode="json"), meta=meta, layers=_layer_rows(trainer))
    for mitigation in config.mitigation:
        writer.event(0, "mitigation", mitigation)
    if trainer.data.left_out:
        first = ", ".join(map(str, trainer.data.left_out[:5]))
        writer.event(0, "bad-image", f"{len(trainer.data.left_out)} images cannot be decoded and are left out: {first}")
    return _train_into(writer, trainer, run_dir, progress, started)


def resume_run(
    run_dir: Path,
    progress: Callable[[Progress], None] = lambda _: None,
    started: Callable[[Path], None] = lambda _: None,
) -> FinishedRun:
    """Go on with a run from its latest good checkpoint. Rows past it are dropped from the store. ConfigError for a
    run that is finished or has no checkpoint."""
    from stabilitylab.train.checkpoint import load_checkpoint
    from stabilitylab.train.distributed import describe
    from stabilitylab.train.trainer import Trainer

    world = describe()
    config = from_dict(read_toml(run_dir / "config.toml"))
    state = load_checkpoint(run_dir / "checkpoints")
    trainer = Trainer(config, world)
    if state["iteration"] >= trainer.total:
        raise ConfigError(
            f"run {run_dir.name} is finished: {state['iteration']} of {trainer.total} iterations are made"
        )
    trainer.restore(state)
    if not world.main:
        return _follow(trainer)
    meta = provenance() | {"device": str(trainer.device), "processes": str(world.size)}
    writer = RunWriter.resume(run_dir, state["iteration"], meta=meta)
    return _train_into(writer, trainer, run_dir, progress, started)


def probe_run(
    run_dir: Path,
    *,
    shares: Sequence[float],
    knn: bool,
    epochs: int,
    batch_size: int,
    device: str = "auto",
) -> list[ProbeResult]:
    """Evaluate the encoder of a run's last checkpoint and add the results to the run. What the run already holds
    is not written again. ``shares``: of the labels, for linear classifiers."""
    from stabilitylab.data.datasets import load_data
    from stabilitylab.train.checkpoint import load_checkpoint, restore_method
    from stabilitylab.train.mitigations import configured
    from stabilitylab.train.mitigations.applied import build_mitigated
    from stabilitylab.train.probe import knn_probe, linear_probe
    from stabilitylab.train.trainer import pick_device

    config = configured(from_dict(read_toml(run_dir / "config.toml")))
    state = load_checkpoint(run_dir / "checkpoints")
    at = pick_device(device)
    data = load_data(config.data)
    method, _ = build_mitigated(config, data.channels, at)
    restore_method(state, method)
    encoder = method.base_encoder
    results = [knn_probe(config, data, encoder, at)] if knn else []
    for share in shares:
        results.append(linear_probe(config, data, encoder, at, share=share, epochs=epochs, batch_size=batch_size))
    with open_run(run_dir) as reader:
        known = {name for name, curve in reader.evals().items() if state["iteration"] in curve["iteration"]}
    new = [result for result in results if result.metric not in known]
    if new:
        with RunWriter.annotate(run_dir) as writer:
            writer.append(
                "evals",
                {
                    "iteration": [state["iteration"]] * len(new),
                    "metric": [result.metric for result in new],
                    "value": [result.value for result in new],
                    "num_samples": [result.num_samples for result in new],
                },
            )
    return results


def _layer_rows(trainer: Trainer) -> list[LayerRow]:
    return [LayerRow(i, x.name, x.depth, x.num_params, x.trainable) for i, x in enumerate(trainer.layers())]


def _train_into(
    writer: RunWriter,
    trainer: Trainer,
    run_dir: Path,
    progress: Callable[[Progress], None],
    started: Callable[[Path], None],
) -> FinishedRun:
    from stabilitylab.recording.recorder import Recorder

    settings = trainer.config.record
    with writer:
        started(run_dir)
        recorder = Recorder(
            trainer.layers(),
            writer,
            signals=settings.signals,
            model=trainer.method,
            optimizer=trainer.optimizer,
            log_grads=settings.log_grads,
            every=settings.every,
            flush_every=settings.flush_every,
            flush_seconds=settings.flush_seconds,
            amp_skips=trainer.config.train.amp == "fp16",
        )
        result = trainer.train(recorder, run_dir / "checkpoints", progress)
        writer.close("stopped" if result.stopped else "finished")
    return FinishedRun(run_dir, result)


def _follow(trainer: Trainer) -> FinishedRun:
    """Train as one of several processes that do not record."""
    from stabilitylab.recording.recorder import NullSink, Recorder

    recorder = Recorder([], NullSink(), log_grads=False)
    return FinishedRun(Path(), trainer.train(recorder, Path()))


def provenance() -> dict[str, str]:
    """Versions, Python, git commit of the working folder: what a reader needs to repeat the run."""
    found = {f"{library}_version": version(library) for library in _LIBRARIES}
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return found | {"python_version": platform.python_version(), "git_commit": git.stdout.strip()}


def train_side_by_side(
    jobs: Sequence[tuple[str, Config]], root: Path, progress: Callable[[str, Progress], None]
) -> list[Path]:
    """Train named runs in processes of their own, each with its share of the cores. Returns their folders.

    RuntimeError names the runs that failed; the others are finished and kept.
    """
    context = multiprocessing.get_context("spawn")  # fork and torch's threads do not mix
    messages = context.Queue()
    threads = max(1, (os.cpu_count() or 1) // len(jobs))
    workers = {
        name: context.Process(target=_train_in_process, args=(name, config, root, threads, messages))
        for name, config in jobs
    }
    for worker in workers.values():
        worker.start()
    failures = {}
    for name, message in _messages(messages, workers):
        if isinstance(message, str):
            failures[name] = message
        else:
            progress(name, message)
    failures |= {n: f"exit code {w.exitcode}" for n, w in workers.items() if w.exitcode and n not in failures}
    if failures:
        raise RuntimeError("; ".join(f"{name} failed: {why}" for name, why in failures.items()))
    return [root / name for name, _ in jobs]


def _messages(
    messages: multiprocessing.Queue[tuple[str, Progress | str]], workers: Mapping[str, BaseProcess]
) -> Iterator[tuple[str, Progress | str]]:
    while True:
        alive = any(worker.is_alive() for worker in workers.values())
        try:
            yield messages.get(timeout=0.2)
        except queue.Empty:
            if not alive:
                return


def _train_in_process(
    name: str,
    config: Config,
    root: Path,
    threads: int,
    messages: multiprocessing.Queue[tuple[str, Progress | str]],
) -> None:
    import torch

    torch.set_num_threads(threads)
    try:
        train_run(config, root, name, progress=lambda state: messages.put((name, state)))
    except Exception as error:
        messages.put((name, f"{type(error).__name__}: {error}"))


def load_series(reader: RunReader) -> RunSeries:
    """Everything of a run that analysis reads."""
    recorded = reader.layer_series("grad_norm")
    empty = next(iter(recorded.values()), None)
    layers = []
    for row in sorted(reader.layers(), key=lambda row: row.depth):
        series = recorded.get(row.layer_id)
        if series is None and empty is not None:
            series = (empty[0][:0], empty[1][:0])
        if series is not None:
            layers.append(LayerSeries(row.name, row.depth, series[0], series[1], row.trainable))
    evals = {
        metric: EvalCurve(columns["iteration"], columns["value"], columns["num_samples"])
        for metric, columns in reader.evals().items()
    }
    return RunSeries(reader.meta["run_id"], reader.num_iterations, tuple(layers), evals)
