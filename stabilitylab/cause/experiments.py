"""Results of experiments as files beside the run, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stabilitylab.cause.impulse import Impulse
from stabilitylab.cause.pictures import draw_matrices
from stabilitylab.run.experiments import Experiment, load_experiments, save_experiment


def save_impulse(run_dir: Path, impulse: Impulse, settings: Mapping[str, Any]) -> Experiment:
    """Keep an impulse experiment; ``settings`` are what it was asked for."""
    responses = [
        {
            "kicked": r.kicked,
            "responding": r.responding,
            "reached": r.reached,
            "arrival": r.arrival,
            "peak": r.peak,
            "peak_at": r.peak_at,
            "peak_ci95": r.peak_ci95,
            "decay": r.decay,
            "decay_ci95": r.decay_ci95,
        }
        for r in impulse.responses
    ]
    metric = {
        layer: {str(t): {"mean": float(v.mean()), "kicks": v.tolist()} for t, v in by_offset.items()}
        for layer, by_offset in impulse.metric.items()
    }
    results = {
        "order": impulse.order,
        "at": impulse.at,
        "size": impulse.size,
        "of": impulse.of,
        "kicks": impulse.kicks,
        "responses": responses,
        "metric": metric,
        "replay_check": str(impulse.check) if impulse.check else None,
    }
    at = ",".join(map(str, impulse.at))
    last = next(reversed(impulse.differences))
    commands = (
        [] if impulse.kicks >= 20 else [f"stablab cause impulse {run_dir.name} --layer {last} --at {at} --kicks 20"]
    )
    return save_experiment(
        run_dir,
        "impulse",
        impulse.sentence(),
        settings=settings,
        results=results,
        next_commands=commands,
        arrays=impulse.differences,
        draw=lambda path: draw_matrices({run_dir.name: impulse}, path),
    )


def load_impulse(run_dir: Path, settings: Mapping[str, Any]) -> Impulse | None:
    """The impulse experiment of a run that was asked for with just these settings, if there is one."""
    for experiment in reversed(load_experiments(run_dir)):
        arrays = experiment.arrays()
        if experiment.kind == "impulse" and experiment.settings == dict(settings) and arrays:
            results = experiment.results
            metric = {
                layer: {int(t): np.array(entry["kicks"]) for t, entry in by_offset.items()}
                for layer, by_offset in results["metric"].items()
            }
            order, at = tuple(results["order"]), tuple(results["at"])
            return Impulse(order, results["size"], results["of"], at, arrays, metric)
    return None
