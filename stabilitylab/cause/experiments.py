"""Save the results of experiments next to the run, and load them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stabilitylab.cause.blame import Blame, draw_contact_sheet
from stabilitylab.cause.impulses import Impulse
from stabilitylab.cause.pictures import draw_matrices, draw_sharpness, draw_swap
from stabilitylab.cause.responses import FEWEST
from stabilitylab.cause.sharpness import Sharpness
from stabilitylab.cause.swap import Swap
from stabilitylab.run.experiments import Experiment, load_experiments, save_experiment


def save_impulse(run_dir: Path, impulse: Impulse, settings: Mapping[str, Any]) -> Experiment:
    """Save an impulse experiment. ``settings``: the requested settings."""
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
    last = next(reversed(impulse.differences))
    commands = []
    if len(impulse.at) < FEWEST:
        spread = f"{min(impulse.at)}:{min(impulse.at) + 20 * FEWEST}:20"
        commands = [f"stablab cause impulse {run_dir.name} --layer {last} --at {spread}"]
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
    """The saved impulse experiment of a run with exactly these settings; None without one."""
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


def save_swap(run_dir: Path, swap: Swap, settings: Mapping[str, Any]) -> Experiment:
    """Save a swap experiment."""
    name, at = run_dir.name, settings["at"]
    commands = {
        "data": [f"stablab cause blame {name} --at {swap.peak}"],
        "state": [
            f"stablab cause sharpness {name} --at {swap.state_at}",
            f"stablab branch {name} --at {at} --mitigation zclip",
        ],
        "inconclusive": [f"stablab cause swap {name} --at {at} --repeats {2 * settings['repeats']}"],
    }.get(swap.verdict, [f"stablab branch {name} --at {at} --mitigation zclip"])
    results = {
        "layer": swap.layer,
        "peak": swap.peak,
        "height": swap.height,
        "state_at": swap.state_at,
        "cells": [vars(cell) for cell in swap.cells],
        "replay_check": str(swap.check),
    }
    return save_experiment(
        run_dir,
        "swap",
        swap.sentence(),
        verdict=swap.verdict,
        settings=settings,
        results=results,
        next_commands=commands,
        draw=lambda path: draw_swap(swap, path),
    )


def save_blame(run_dir: Path, blame: Blame, settings: Mapping[str, Any], *, skip_list: str | None = None) -> Experiment:
    """Save a ranking of images and its contact sheet. ``skip_list``: the file to which the indices were written."""
    results = {
        "iteration": blame.iteration,
        "layer": blame.layer,
        "how": blame.how,
        "by": blame.by,
        "typical": blame.typical,
        "images": [vars(image) for image in blame.images],
        "replay_check": str(blame.check),
    }
    same = f"--layer {blame.layer} --how {blame.how} --by {blame.by}"
    commands = [
        *([] if skip_list else [f"stablab cause blame {run_dir.name} --at {blame.iteration} {same} -o skip.txt"]),
        f"stablab train --skip-list {skip_list or 'skip.txt'}",
    ]
    return save_experiment(
        run_dir,
        "blame",
        blame.sentence(),
        settings=settings,
        results=results,
        next_commands=commands if blame.stands_out else [f"stablab cause swap {run_dir.name} --at {blame.iteration}"],
        draw=lambda path: draw_contact_sheet(blame, path),
    )


def save_sharpness(run_dir: Path, sharpness: Sharpness, settings: Mapping[str, Any]) -> Experiment:
    """Save curvatures and their plot relative to the edge of stability."""
    results = {
        "curvatures": [vars(c) | {"verdict": c.verdict} for c in sharpness.curvatures],
        "replay_check": str(sharpness.check) if sharpness.check else None,
    }
    above = any(c.verdict == "above" for c in sharpness.curvatures)
    last = max(c.iteration for c in sharpness.curvatures)
    return save_experiment(
        run_dir,
        "sharpness",
        sharpness.sentence(),
        settings=settings,
        results=results,
        next_commands=[f"stablab branch {run_dir.name} --at {last} --mitigation zclip"] if above else [],
        draw=lambda path: draw_sharpness(run_dir, sharpness, path),
    )
