"""The inputs of an analysis: the series of one run, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class LayerSeries:
    """One layer's gradient series.

    ``depth``: position in the network. ``iteration`` (n,) int64, strictly increasing. ``grad_norm`` (n,) float64, NaN
    or inf where the gradient was not finite. A frozen layer has empty arrays and ``trainable`` False.
    """

    name: str
    depth: int
    iteration: np.ndarray
    grad_norm: np.ndarray
    trainable: bool = True


@dataclass(frozen=True, slots=True)
class EvalCurve:
    """One metric over training: ``iteration`` (n,), ``value`` (n,) as recorded, ``num_samples`` (n,) or 0.

    ``goal`` (``max`` or ``min``) and ``scale``: declared by the user; None if they are inferred from name and values.
    """

    iteration: np.ndarray
    value: np.ndarray
    num_samples: np.ndarray
    goal: str | None = None
    scale: str | None = None


@dataclass(frozen=True, slots=True)
class RunSeries:
    """All data of one run that the analysis reads.

    ``iterations``: number of iterations. ``layers``: in order of depth. ``evals``: metrics by name. ``rows``: what a
    recorded row is: ``sampled`` (one iteration), ``mean`` (over the iterations up to the next row), ``bucket`` (their
    maximum), or empty if the log does not say. ``scalars``: other curves by name, such as the training loss, as
    (iteration, value). ``signals``: signals other than ``grad_norm``, by name, as series by layer. ``facts``: parts of
    the configuration that verdicts need (``method``, ``temperature``, ``batch_size``). ``metric``, ``goal``: by which
    the run asks to be judged. ``first``, ``last``: the layers between which the run asks for the lag. ``off_path``:
    layers whose gradients do not come from the main loss (a probe on detached features). ``consumed``: what the run
    counts besides iterations, tokens or images, as (name, iteration, count so far).
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
    consumed: tuple[str, np.ndarray, np.ndarray] | None = None

    @property
    def loss(self) -> EvalCurve | None:
        """The training loss; None if it was not recorded."""
        if "loss" not in self.scalars:
            return None
        iteration, value = self.scalars["loss"]
        return EvalCurve(iteration, value, np.zeros(len(iteration), dtype=np.int64))


def last_of_each(iteration: np.ndarray) -> np.ndarray | slice:
    """Index that sorts rows by iteration and keeps the last row of each: in a resumed run, iterations repeat.

    >>> import numpy as np
    >>> last_of_each(np.array([0, 1, 2, 1, 2, 3]))
    array([0, 3, 4, 5])
    """
    iteration = np.asarray(iteration)
    if len(iteration) < 2 or bool((np.diff(iteration) > 0).all()):
        return slice(None)
    order = np.argsort(iteration, kind="stable")
    ordered = iteration[order]
    return np.asarray(order[np.append(ordered[1:] != ordered[:-1], True)])


def without_duplicates(layer: LayerSeries) -> LayerSeries:
    """The layer with sorted, unique iterations; see `last_of_each`."""
    keep = last_of_each(layer.iteration)
    if isinstance(keep, slice):
        return layer
    norm = np.asarray(layer.grad_norm)[keep]
    return LayerSeries(layer.name, layer.depth, np.asarray(layer.iteration)[keep], norm, layer.trainable)
