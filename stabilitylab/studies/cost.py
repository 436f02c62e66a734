"""Estimate the cost of a study by timing a few iterations of each kind of run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from stabilitylab.config import Config

_ITERATIONS = 8


def estimate_seconds(configs: Sequence[Config]) -> float:
    """Estimated seconds in one process on this machine. Runs that differ only in seed, learning rate or weight decay
    are assumed to cost the same."""
    by_shape: dict[str, tuple[float, float]] = {}
    total = 0.0
    for config in configs:
        shape = _shape(config)
        if shape not in by_shape:
            by_shape[shape] = _probe(config)
        step, evaluation = by_shape[shape]
        iterations = _iterations(config)
        every = config.eval.knn_every
        total += iterations * step + (math.ceil(iterations / every) + 1 if every else 0) * evaluation
    return total


def _shape(config: Config) -> str:
    dump = config.model_dump(mode="json")
    dump["optim"] = config.optim.name
    dump["train"] = [config.train.batch_size, config.train.micro_batch, config.train.amp, config.train.device]
    return str(dump)


def _iterations(config: Config) -> float:
    from stabilitylab.data.datasets import load_data

    if config.train.iterations is not None:
        return config.train.iterations
    assert config.train.epochs is not None
    return config.train.epochs * max(1, len(load_data(config.data).train) // config.train.batch_size)


def _probe(config: Config) -> tuple[float, float]:
    """Seconds of one iteration (the median) and of one kNN evaluation."""
    from stabilitylab.recording.recorder import Recorder
    from stabilitylab.recording.sink import NullSink
    from stabilitylab.train.trainer import Trainer

    short = config.model_copy(
        update={
            "train": config.train.model_copy(update={"iterations": _ITERATIONS, "epochs": None}),
            "eval": config.eval.model_copy(update={"knn_every": 0}),
        }
    )
    trainer = Trainer(short)
    recorder = Recorder(trainer.layers(), NullSink(), model=trainer.method, optimizer=trainer.optimizer)
    times = [time.perf_counter()]
    for iteration, views in enumerate(trainer.batches.iterate(0, _ITERATIONS)):
        trainer.step(recorder, iteration, views).item()
        times.append(time.perf_counter())
    evaluation = 0.0
    if config.eval.knn_every:
        trainer.monitor(trainer.method.base_encoder)  # warm up: the first call resizes the images
        started = time.perf_counter()
        trainer.monitor(trainer.method.base_encoder).item()
        evaluation = time.perf_counter() - started
    steps = [after - before for before, after in pairwise(times)]
    return median(steps[1:]), evaluation
