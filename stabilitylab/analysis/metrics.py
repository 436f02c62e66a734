"""Which evaluation curve a run is judged by, and in which direction: higher accuracy or lower loss.

A metric has a *goal* (``max`` or ``min``) and a *scale* (``fraction``, ``percent``, ``log`` for a perplexity, or
``value``). Both are read from its name and values unless the user states them. Judging always happens on a curve for
which higher is better: fractions as they are, percentages divided by 100, losses negated, perplexities as their negated
logarithm, so that a perplexity and the loss behind it give the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.results import EvalCurve, JudgedMetric, RunAnalysis, RunSeries
from stabilitylab.errors import ConfigError, NoDataError
from stabilitylab.metrics import check_goal, goal_of, is_accuracy, is_binomial, is_held_out, scale_of

TRAINING_LOSS = "loss"
MIN_VALUES = 3
LOSS_BLOCKS = 400
"""The training loss is judged as the means of at most this many blocks of iterations."""


@dataclass(frozen=True, slots=True)
class Metric:
    """An evaluation curve with what is needed to judge it. ``curve`` holds the values as they were recorded."""

    name: str
    goal: str
    scale: str
    curve: EvalCurve
    chosen: str
    """Why this one: ``asked for``, or the rule of the default."""

    @property
    def judged(self) -> EvalCurve:
        """The curve for which higher is better: see the module's first lines."""
        value = np.asarray(self.curve.value, dtype=np.float64)
        if self.scale == "percent":
            value = value / 100
        elif self.scale == "log":
            with np.errstate(divide="ignore", invalid="ignore"):
                value = np.log(value)
        return EvalCurve(self.curve.iteration, value if self.goal == "max" else -value, self.curve.num_samples)

    @property
    def share(self) -> bool:
        """Whether the values are shares of something, shown in percent."""
        return self.scale in ("fraction", "percent")

    @property
    def binomial(self) -> bool:
        """Whether ``num_samples`` gives the sampling error: a share of samples that were right or wrong."""
        return self.share and is_binomial(self.name)

    @property
    def min_depth(self) -> float:
        """The least depth of a dip, in judged units: 1 point of a share, 1% of a perplexity, else 1% of the range."""
        if self.scale != "value":
            return 0.01
        finite = self.curve.value[np.isfinite(self.curve.value)]
        return 0.01 * float(np.ptp(finite)) if len(finite) else 0.01

    def summary(self) -> JudgedMetric:
        """What a result says about the metric it judged."""
        finite = np.isfinite(self.judged.value)
        return JudgedMetric(self.name, self.goal, self.scale, int(finite.sum()), self.chosen)


def metric_of(
    name: str, curve: EvalCurve, goal: str | None = None, scale: str | None = None, chosen: str = "asked for"
) -> Metric:
    """The metric ``name`` with its goal and scale: as asked for, else as declared with the curve, else by its name.

    Raises:
        ConfigError: the goal is unknown, contradicts the name, or cannot be told from it.
        NoDataError: every value is missing.
    """
    check_goal(name, goal)
    finite = np.asarray(curve.value)[np.isfinite(curve.value)]
    if not len(finite):
        raise NoDataError(f"metric {name}: all {len(curve.value)} values are missing or not finite; nothing to judge")
    found = goal or curve.goal or goal_of(name)
    if found is None:
        raise ConfigError(f"metric {name}: its name does not tell whether higher is better; give a goal, max or min")
    return Metric(name, found, scale or curve.scale or scale_of(name, finite), curve, chosen)


def choose_metric(
    evals: Mapping[str, EvalCurve], loss: EvalCurve | None = None, *, metric: str | None = None, goal: str | None = None
) -> Metric:
    """The metric asked for, else the default: ``knn_top1``, another kNN accuracy, a held-out accuracy, any accuracy,
    a metric declared with a goal, a held-out loss or perplexity, and last the training loss. Only curves with three
    values or more are defaults.

    Raises:
        NoDataError: the run has no such metric (the message names those it has), or nothing that can be judged.
        ConfigError: see `metric_of`.
    """
    if metric is not None:
        if metric in evals:
            return metric_of(metric, evals[metric], goal)
        if metric == TRAINING_LOSS and loss is not None:
            return metric_of(metric, block_means(loss), goal)
        known = [*evals, *([TRAINING_LOSS] if loss is not None and TRAINING_LOSS not in evals else [])]
        raise NoDataError(f"no metric {metric!r} was recorded; there are: {', '.join(known) or 'none'}")
    ranks = {name: _rank(name, curve) for name, curve in evals.items() if np.isfinite(curve.value).sum() >= MIN_VALUES}
    judgeable = {name: rank for name, rank in ranks.items() if rank is not None}
    if judgeable:
        best = min(judgeable, key=lambda name: (judgeable[name], name))
        return metric_of(best, evals[best], goal, chosen=_RULES[judgeable[best]])
    if loss is not None and np.isfinite(loss.value).sum() >= MIN_VALUES:
        return metric_of(TRAINING_LOSS, block_means(loss), goal, chosen="no evaluation was recorded")
    have = [f"{name} ({int(np.isfinite(curve.value).sum())})" for name, curve in evals.items()]
    raise NoDataError(
        f"no metric has the {MIN_VALUES} evaluations that this needs; recorded: {', '.join(have) or 'none'}"
    )


_RULES = (
    "the kNN accuracy", "a kNN accuracy", "a held-out accuracy", "an accuracy", "declared with a goal",
    "a held-out loss", "a loss",
)  # fmt: skip


def _rank(name: str, curve: EvalCurve) -> int | None:
    """Place in the order of defaults; None for a curve whose goal is unknown."""
    goal = curve.goal or goal_of(name)
    if goal is None:
        return None
    if name == "knn_top1":
        return 0
    if is_accuracy(name):
        return 1 if "knn" in name.lower() else 2 if is_held_out(name) else 3
    if curve.goal is not None or goal == "max":
        return 4
    return 5 if is_held_out(name) else 6


def block_means(curve: EvalCurve, blocks: int = LOSS_BLOCKS) -> EvalCurve:
    """Means of at most ``blocks`` equal stretches of a long curve, each at its last iteration."""
    value, iteration = np.asarray(curve.value, dtype=np.float64), np.asarray(curve.iteration)
    length = -(-len(value) // blocks)
    if length <= 1:
        return curve
    starts = np.arange(0, len(value), length)
    finite = np.isfinite(value)
    count = np.add.reduceat(finite, starts)
    total = np.add.reduceat(np.where(finite, value, 0.0), starts)
    means = np.divide(total, count, out=np.full(len(starts), np.nan), where=count > 0)
    ends = np.append(starts[1:], len(value)) - 1
    return EvalCurve(iteration[ends], means, np.zeros(len(starts), dtype=np.int64), curve.goal, curve.scale)


def curve_of(series: RunSeries, metric: JudgedMetric) -> EvalCurve | None:
    """The curve of a run that a metric names; the training loss as means of blocks. None where there is none."""
    curve = series.evals.get(metric.name)
    if curve is None and metric.name == TRAINING_LOSS and series.loss is not None:
        return block_means(series.loss)
    return curve


def metric_label(name: str) -> str:
    """What reports call a metric: ``knn_top1`` is kNN accuracy, ``loss`` the training loss, others keep their name."""
    return {"knn_top1": "kNN accuracy", TRAINING_LOSS: "training loss"}.get(name, name)


def dip_word(found: RunAnalysis, number: int = 1) -> str:
    """``accuracy dip``, ``rise of val_loss``: one word for what was looked for."""
    metric = found.metric or JudgedMetric()
    plural = "" if number == 1 else "s"
    if metric.goal == "min":
        return f"rise{plural} of {metric_label(metric.name)}"
    if metric.name == "knn_top1":
        return f"accuracy dip{plural}"
    return f"dip{plural} of {metric_label(metric.name)}"


def depth_text(depth: float, metric: JudgedMetric) -> str:
    """The depth of a dip in the metric's own units: ``3.1 points``, ``a factor of 1.4``, ``0.27``."""
    if metric.share:
        return f"{100 * depth:.1f} points"
    if metric.scale == "log":
        return f"a factor of {math.exp(depth):.3g}"
    return f"{depth:.3g}"


def value_text(value: float, metric: JudgedMetric) -> str:
    """A value as it was recorded: ``83.1 %`` for a share, else the number."""
    if metric.scale == "fraction":
        return f"{100 * value:.1f} %"
    return f"{value:.1f} %" if metric.scale == "percent" else f"{value:.4g}"
