"""Train a configuration and record it as a run in the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stabilitylab.config import Config, from_dict, read_run_config
from stabilitylab.errors import ConfigError, RunBusy, StoreError
from stabilitylab.run.provenance import provenance
from stabilitylab.store.compaction import SEGMENTS
from stabilitylab.store.location import claim_run, unclaim
from stabilitylab.store.locks import WRITER_LOCK, is_held
from stabilitylab.store.reader import open_run
from stabilitylab.store.writer import LayerRow, RunWriter

if TYPE_CHECKING:
    from stabilitylab.train.probe import ProbeResult
    from stabilitylab.train.trainer import Progress, Trainer, TrainResult


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended, with its folder and result."""

    path: Path
    result: TrainResult


def train_run(
    config: Config,
    root: Path,
    name: str | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    started: Callable[[Path], None] = lambda _: None,
    *,
    interruptible: bool = False,
) -> FinishedRun:
    """Train a run and record it under ``root``. The run's folder is created only after the configuration and the data
    have been checked; ``started`` is then called with its path. Under ``torchrun`` or ``srun``, every process calls
    this function, and rank 0 records. ``interruptible``: SIGUSR1, SIGUSR2 and SIGTERM stop training after the current
    iteration with a checkpoint."""
    from stabilitylab.train.distributed import describe
    from stabilitylab.train.trainer import Trainer

    trainer = Trainer(config, describe())
    trainer.interruptible = interruptible
    if not trainer.world.main:
        return _follow(trainer)
    run_dir = claim_run(root, name).absolute()
    try:
        return _record(trainer, run_dir, progress, started)
    except (OSError, StoreError):
        unclaim(run_dir)
        raise


def train_in(run_dir: Path, config: Config, progress: Callable[[Progress], None]) -> FinishedRun:
    """Train a run in a folder that was created for it and contains no run yet."""
    from stabilitylab.train.distributed import describe
    from stabilitylab.train.trainer import Trainer

    trainer = Trainer(config, describe())
    return _record(trainer, run_dir, progress) if trainer.world.main else _follow(trainer)


def _record(
    trainer: Trainer,
    run_dir: Path,
    progress: Callable[[Progress], None],
    started: Callable[[Path], None] = lambda _: None,
) -> FinishedRun:
    """Train a new run and record it in its folder."""
    config = trainer.given
    meta = provenance() | {"seed": str(config.train.seed)} | _machine(trainer)
    meta["processes"] = str(trainer.world.size)
    (run_dir / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    writer = RunWriter.create(run_dir, config=config.model_dump(mode="json"), meta=meta, layers=layer_rows(trainer))
    for mitigation in config.mitigation:
        writer.event(0, "mitigation", mitigation)
    if trainer.warmup >= trainer.total:
        writer.event(0, "warm-up", f"warmup takes {trainer.warmup} iterations, but the run has only {trainer.total}")
    if trainer.data.left_out:
        first = ", ".join(map(str, trainer.data.left_out[:5]))
        writer.event(0, "bad-image", f"{len(trainer.data.left_out)} images cannot be decoded and are skipped: {first}")
    return record_into(writer, trainer, run_dir, progress, started)


def resume_run(
    run_dir: Path,
    progress: Callable[[Progress], None] = lambda _: None,
    started: Callable[[Path], None] = lambda _: None,
    *,
    interruptible: bool = False,
) -> FinishedRun:
    """Resume a run from its latest readable checkpoint. Later rows are dropped from the store. Raises ConfigError if
    the run is finished or has no checkpoint. ``interruptible``: as in `train_run`."""
    from stabilitylab.train.checkpoint import load_checkpoint
    from stabilitylab.train.distributed import describe
    from stabilitylab.train.trainer import Trainer

    world = describe()
    config = from_dict(read_run_config(run_dir))
    if world.main and is_held(run_dir / SEGMENTS / WRITER_LOCK):
        raise RunBusy(f"run {run_dir.name} is still training; resume it after it has ended")
    state = load_checkpoint(run_dir / "checkpoints")
    trainer = Trainer(config, world)
    if state["iteration"] >= trainer.total:
        raise ConfigError(
            f"run {run_dir.name} is finished: {state['iteration']} of {trainer.total} iterations are done"
        )
    trainer.interruptible = interruptible
    trainer.restore(state)
    if not world.main:
        return _follow(trainer)
    meta = provenance() | _machine(trainer) | {"processes": str(world.size)}
    writer = RunWriter.resume(run_dir, state["iteration"], meta=meta)
    return record_into(writer, trainer, run_dir, progress, started)


def probe_run(
    run_dir: Path,
    *,
    shares: Sequence[float],
    knn: bool,
    epochs: int,
    batch_size: int | None,
    device: str = "auto",
) -> list[ProbeResult]:
    """Evaluate the encoder of a run's last checkpoint and add the results to the run, except those it already has.
    ``shares``: shares of the labels for the linear classifiers. Under torchrun or srun all processes call this and
    share the images; rank 0 writes the results."""
    from stabilitylab.data.datasets import load_data
    from stabilitylab.train.checkpoint import load_checkpoint, restore_method
    from stabilitylab.train.device import pick_device
    from stabilitylab.train.distributed import describe, join
    from stabilitylab.train.mitigations import configured
    from stabilitylab.train.mitigations.applied import build_mitigated
    from stabilitylab.train.probe import knn_probe, linear_probe

    with open_run(run_dir) as reader:
        if reader.status == "running":
            raise ConfigError(f"run {run_dir.name} is still training; probe it after it has ended")
    config = configured(from_dict(read_run_config(run_dir)))
    state = load_checkpoint(run_dir / "checkpoints")
    world = describe()
    at = pick_device(device, world.local_rank)
    join(world, at)
    data, processes = load_data(config.data), (world.rank, world.size)
    method, _ = build_mitigated(config, data.channels, at)
    restore_method(state, method)
    encoder = method.base_encoder
    results = [knn_probe(config, data, encoder, at, processes)] if knn else []
    for share in dict.fromkeys(shares):
        results.append(
            linear_probe(
                config, data, encoder, at, share=share, epochs=epochs, batch_size=batch_size, processes=processes
            )
        )
    if not world.main:
        return results
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


def before_spikes(run_dir: Path) -> set[int]:
    """Iterations of the checkpoints to keep: the last one before each spike so far, and all within the detector's
    look-ahead, because a spike can be confirmed only from later gradients."""
    from stabilitylab.analysis.detection.spikes import SpikeSettings, detect
    from stabilitylab.analysis.series import without_duplicates
    from stabilitylab.run.series import load_series
    from stabilitylab.train.checkpoint import checkpoints, iteration_of

    with open_run(run_dir) as reader:
        series = load_series(reader)
    starts = [t for layer in series.layers if layer.trainable for t in detect(without_duplicates(layer)).starts]
    there = [iteration_of(path) for path in checkpoints(run_dir / "checkpoints")]
    before = {max(earlier) for start in starts if (earlier := [t for t in there if t <= start])}
    open_until = series.iterations - SpikeSettings().window
    return before | {t for i, t in enumerate(there) if i == 0 or there[i - 1] > open_until}


def layer_rows(trainer: Trainer) -> list[LayerRow]:
    return [LayerRow(i, x.name, x.depth, x.num_params, x.trainable) for i, x in enumerate(trainer.layers())]


def _machine(trainer: Trainer) -> dict[str, str]:
    """Other settings that affect the last bits of results: device, CPU capability of torch's kernels, threads."""
    import torch

    return {
        "device": str(trainer.device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def record_into(
    writer: RunWriter,
    trainer: Trainer,
    run_dir: Path,
    progress: Callable[[Progress], None],
    started: Callable[[Path], None],
) -> FinishedRun:
    from stabilitylab.recording.recorder import Recorder

    settings = trainer.config.record
    if trainer.config.train.keep_before_spikes:
        trainer.protect = lambda: before_spikes(run_dir)
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
        try:
            result = trainer.train(recorder, run_dir / "checkpoints", progress)
        finally:
            recorder.close()
        writer.close("stopped" if result.stopped else "finished")
    return FinishedRun(run_dir, result)


def _follow(trainer: Trainer) -> FinishedRun:
    """Train in a process that does not record."""
    from stabilitylab.recording.recorder import Recorder
    from stabilitylab.recording.sink import NullSink

    recorder = Recorder([], NullSink(), log_grads=False)
    return FinishedRun(Path(), trainer.train(recorder, Path()))
