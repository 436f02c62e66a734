"""What analysis takes: one run's series, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class LayerSeries:
    """One layer's gradient series.

    ``iteration`` (n,) int64, strictly rising; ``grad_norm`` (n,) float64, may hold NaN and inf where the
    gradient was not finite. A frozen layer has empty arrays and ``trainable`` False.
    """

    name: str
    depth: int
    iteration: np.ndarray
    grad_norm: np.ndarray
    trainable: bool = True


@dataclass(frozen=True, slots=True)
class EvalCurve:
    """One metric over training: ``iteration`` (n,), ``value`` (n,) as recorded, ``num_samples`` (n,) or 0.

    ``goal`` (max or min) and ``scale`` are what the user declared; None leaves both to the name and the values.
    """

    iteration: np.ndarray
    value: np.ndarray
    num_samples: np.ndarray
    goal: str | None = None
    scale: str | None = None


@dataclass(frozen=True, slots=True)
class RunSeries:
    """Everything of one run that analysis reads. ``layers`` are ordered by depth.

    ``rows``: what a recorded row stands for, where the log says so: ``sampled`` (one iteration), ``mean`` (of the
    iterations up to the next row) or ``bucket`` (their maximum). Empty where it is not known. ``scalars``: other
    curves by name, such as the training loss, each with the iterations it was recorded at. ``signals``: signal ->
    its series by layer, beside ``grad_norm``. ``facts``: what the configuration says and a verdict needs
    (``method``, ``temperature``, ``batch_size``). ``metric`` and ``goal``: the run's own choice
    of what it is judged by. ``first`` and ``last``: its choice of the layers between which a lag is measured.
    ``off_path``: layers whose gradients do not come from the main loss (a probe on detached features).
    """

    run: str
    iterations: int
    layers: tuple[LayerSeries, ...]
    evals: dict[str, EvalCurve] = field(default_factory=dict)
    rows: str = ""
    scalars: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    signals: dict[str, tuple[LayerSeries, ...]] = field(default_factory=dict)
    facts: dict[str, str | float] = field(default_factory=dict)
    metric: str | None = None
    goal: str | None = None
    first: str | None = None
    last: str | None = None
    off_path: tuple[str, ...] = ()

    @property
    def loss(self) -> EvalCurve | None:
        """The training loss, where it was recorded."""
        if "loss" not in self.scalars:
            return None
        iteration, value = self.scalars["loss"]
        return EvalCurve(iteration, value, np.zeros(len(iteration), dtype=np.int64))


def last_of_each(iteration: np.ndarray) -> np.ndarray | slice:
    """What picks the rows in order, each iteration once: of a repeated one the last row, that of a resumed run."""
    iteration = np.asarray(iteration)
    if len(iteration) < 2 or bool((np.diff(iteration) > 0).all()):
        return slice(None)
    order = np.argsort(iteration, kind="stable")
    ordered = iteration[order]
    return np.asarray(order[np.append(ordered[1:] != ordered[:-1], True)])


def without_duplicates(layer: LayerSeries) -> LayerSeries:
    """The layer with its iterations in order and each once; see `last_of_each`."""
    keep = last_of_each(layer.iteration)
    if isinstance(keep, slice):
        return layer
    norm = np.asarray(layer.grad_norm)[keep]
    return LayerSeries(layer.name, layer.depth, np.asarray(layer.iteration)[keep], norm, layer.trainable)
