"""The evaluation metric by which a run is judged, and its direction: higher accuracy or lower loss.

A metric has a *goal* (``max`` or ``min``) and a *scale* (``fraction``, ``percent``, ``log`` for a perplexity, or
``value``). Both are inferred from its name and values unless the user sets them. The judged curve is always one for
which higher is better: percentages are divided by 100, losses are negated, and perplexities become their negative
logarithm, so that a perplexity and the corresponding loss give the same result.
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
    """An evaluation curve with its goal and scale. ``curve``: the values as recorded."""

    name: str
    goal: str
    scale: str
    curve: EvalCurve
    chosen: str
    """Why this metric: ``asked for``, or the rule by which the default was chosen."""

    @property
    def judged(self) -> EvalCurve:
        """The curve for which higher is better; see the module docstring."""
        value = np.asarray(self.curve.value, dtype=np.float64)
        if self.scale == "percent":
            value = value / 100
        elif self.scale == "log":
            with np.errstate(divide="ignore", invalid="ignore"):
                value = np.log(value)
        return EvalCurve(self.curve.iteration, value if self.goal == "max" else -value, self.curve.num_samples)

    @property
    def share(self) -> bool:
        """Whether the values are proportions, shown in percent."""
        return self.scale in ("fraction", "percent")

    @property
    def binomial(self) -> bool:
        """Whether ``num_samples`` gives the sampling error, because the value is a proportion of right or wrong
        samples."""
        return self.share and is_binomial(self.name)

    @property
    def min_depth(self) -> float:
        """The least depth of a dip, in units of ``judged``: 1 percentage point of a proportion, 1% of a perplexity,
        else 1% of the range."""
        if self.scale != "value":
            return 0.01
        finite = self.curve.value[np.isfinite(self.curve.value)]
        return 0.01 * float(np.ptp(finite)) if len(finite) else 0.01

    def summary(self) -> JudgedMetric:
        """The description of this metric in a result."""
        finite = np.isfinite(self.judged.value)
        return JudgedMetric(self.name, self.goal, self.scale, int(finite.sum()), self.chosen)


def metric_of(
    name: str, curve: EvalCurve, goal: str | None = None, scale: str | None = None, chosen: str = "asked for"
) -> Metric:
    """The metric ``name`` with its goal and scale: the argument, else the one declared with the curve, else inferred.

    Raises:
        ConfigError: the goal is unknown, contradicts the name, or cannot be inferred from it.
        NoDataError: every value is missing or non-finite.
    """
    check_goal(name, goal)
    finite = np.asarray(curve.value)[np.isfinite(curve.value)]
    if not len(finite):
        raise NoDataError(f"metric {name}: all {len(curve.value)} values are missing or not finite; nothing to judge")
    direction = goal or curve.goal or goal_of(name)
    if direction is None:
        raise ConfigError(
            f"metric {name}: it is not clear from the name whether higher is better; set a goal, max or min"
        )
    return Metric(name, direction, scale or curve.scale or scale_of(name, finite), curve, chosen)


def choose_metric(
    evals: Mapping[str, EvalCurve], loss: EvalCurve | None = None, *, metric: str | None = None, goal: str | None = None
) -> Metric:
    """The metric ``metric``, or a default.

    The default is the first of these with at least three values: ``knn_top1``, another kNN accuracy, a held-out
    accuracy, any accuracy, a metric declared with a goal, a held-out loss or perplexity, another loss, the training
    loss.

    Raises:
        NoDataError: the run has no such metric (the message lists those it has), or none that can be judged.
        ConfigError: see `metric_of`.
    """
    if metric is not None:
        if metric in evals:
            return metric_of(metric, evals[metric], goal)
        if metric == TRAINING_LOSS and loss is not None:
            return metric_of(metric, block_means(loss), goal)
        known = [*evals, *([TRAINING_LOSS] if loss is not None and TRAINING_LOSS not in evals else [])]
        raise NoDataError(f"no metric {metric!r} was recorded; available: {', '.join(known) or 'none'}")
    goals = {name: c.goal for name, c in evals.items() if np.isfinite(c.value).sum() >= MIN_VALUES}
    best = default_metric(goals)
    if best is not None:
        return metric_of(best, evals[best], goal, chosen=_RULES[_rank(best, goals[best])])
    if loss is not None and np.isfinite(loss.value).sum() >= MIN_VALUES:
        return metric_of(TRAINING_LOSS, block_means(loss), goal, chosen="no evaluation was recorded")
    have = [f"{name} ({int(np.isfinite(curve.value).sum())})" for name, curve in evals.items()]
    raise NoDataError(f"no metric has the required {MIN_VALUES} evaluations; recorded: {', '.join(have) or 'none'}")


_RULES = (
    "the kNN accuracy", "a kNN accuracy", "a held-out accuracy", "an accuracy", "declared with a goal",
    "a held-out loss", "a loss",
)  # fmt: skip


def default_metric(goals: Mapping[str, str | None]) -> str | None:
    """The default metric among these, by the rule of `choose_metric`. ``goals``: declared goal of each, or None."""
    known = [name for name, goal in goals.items() if goal or goal_of(name)]
    return min(known, key=lambda name: (_rank(name, goals[name]), name), default=None)


def _rank(name: str, declared: str | None) -> int:
    """Position in the order of defaults of a metric whose goal is known."""
    if name == "knn_top1":
        return 0
    if is_accuracy(name):
        return 1 if "knn" in name.lower() else 2 if is_held_out(name) else 3
    if declared or goal_of(name) == "max":
        return 4
    return 5 if is_held_out(name) else 6


def block_means(curve: EvalCurve, blocks: int = LOSS_BLOCKS) -> EvalCurve:
    """A long curve as the means of at most ``blocks`` blocks of equal length, each at its last iteration."""
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
    """The curve of ``metric`` in a run; the training loss as block means. None if it was not recorded."""
    curve = series.evals.get(metric.name)
    if curve is None and metric.name == TRAINING_LOSS and series.loss is not None:
        return block_means(series.loss)
    return curve


def metric_label(name: str) -> str:
    """The name of a metric in reports: ``knn_top1`` becomes kNN accuracy, ``loss`` training loss."""
    return {"knn_top1": "kNN accuracy", TRAINING_LOSS: "training loss"}.get(name, name)


def dip_word(analysis: RunAnalysis, number: int = 1) -> str:
    """The name of a dip of the judged metric, such as ``accuracy dip`` or ``rise of val_loss``."""
    metric = analysis.metric or JudgedMetric()
    plural = "" if number == 1 else "s"
    if metric.goal == "min":
        return f"rise{plural} of {metric_label(metric.name)}"
    if metric.name == "knn_top1":
        return f"accuracy dip{plural}"
    return f"dip{plural} of {metric_label(metric.name)}"


def depth_text(depth: float, metric: JudgedMetric) -> str:
    """The depth of a dip in the units of the metric: ``3.1 points``, ``a factor of 1.4``, ``0.27``."""
    if metric.share:
        return f"{100 * depth:.1f} points"
    if metric.scale == "log":
        return f"a factor of {math.exp(depth):.3g}"
    return f"{depth:.3g}"


def value_text(value: float, metric: JudgedMetric) -> str:
    """A recorded value as text: ``83.1 %`` for a proportion, else the number."""
    if metric.scale == "fraction":
        return f"{100 * value:.1f} %"
    return f"{value:.1f} %" if metric.scale == "percent" else f"{value:.4g}"
