"""Format the judged metric: its name, its unit, and whether higher is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.metrics import curve_of, depth_text, metric_label
from stabilitylab.analysis.results import JudgedMetric, RunAnalysis, RunSeries
from stabilitylab.comparison.results import Comparison


@dataclass(frozen=True, slots=True)
class MetricText:
    """Formats the names and values of one metric. Values are passed as recorded; shares are shown in percent."""

    metric: JudgedMetric

    @classmethod
    def of(cls, analyses: Sequence[RunAnalysis]) -> MetricText:
        """The metric of the first run in which one was judged; kNN accuracy if there is none."""
        judged = [a.metric for a in analyses if a.metric is not None and a.metric.judged]
        return cls(judged[0] if judged else JudgedMetric())

    @classmethod
    def of_comparison(cls, comparison: Comparison | None) -> MetricText:
        if comparison is None:
            return cls(JudgedMetric())
        return cls(JudgedMetric(comparison.metric, comparison.goal, comparison.scale))

    @property
    def label(self) -> str:
        """``kNN accuracy``, ``training loss``, or the name of the metric."""
        return metric_label(self.metric.name)

    @property
    def short(self) -> str:
        """A short label: ``kNN``."""
        return "kNN" if self.metric.name == "knn_top1" else self.label

    @property
    def title(self) -> str:
        """The label with its unit, for an axis."""
        name = "kNN top-1" if self.metric.name == "knn_top1" else self.label
        return f"{name}, %" if self.metric.share else name

    @property
    def factor(self) -> float:
        """Factor from recorded to displayed values."""
        return 100.0 if self.metric.scale == "fraction" else 1.0

    @property
    def higher(self) -> bool:
        return self.metric.goal == "max"

    @property
    def final_column(self) -> str:
        """The name of the final value's column in a comparison."""
        return "final_knn" if self.metric.name == "knn_top1" else f"final_{self.metric.name}"

    def number(self, value: float, sign: str = "") -> str:
        """A value without its unit: one decimal for a share, else four significant digits."""
        return f"{self.factor * value:{sign}.1f}" if self.metric.share else f"{value:{sign}.4g}"

    def value(self, value: float) -> str:
        """A value with its unit: ``83.1 %`` or ``2.154``."""
        return f"{self.number(value)}\u00a0%" if self.metric.share else self.number(value)

    def difference(self, value: float) -> str:
        """A signed difference: ``+1.2 points of kNN`` or ``-0.03 of val_loss``."""
        return f"{self.number(value, '+')} {'points ' if self.metric.share else ''}of final {self.short}"

    def depth(self, depth: float) -> str:
        """The depth of a dip: ``3.1 points``, ``0.27``, ``a factor of 1.4``."""
        return depth_text(depth, self.metric)

    def dips(self, number: int) -> str:
        """``2 accuracy dips``, ``1 rise of val_loss``."""
        plural = "" if number == 1 else "s"
        if not self.higher:
            return f"{number} rise{plural} of {self.label}"
        return f"{number} {'accuracy dip' if self.metric.share else f'{self.label} dip'}{plural}"

    def best(self, values: np.ndarray) -> float:
        """The best of finite values (n,)."""
        return float(values.max() if self.higher else values.min())

    def values(self, series: RunSeries) -> np.ndarray:
        """The finite values (n,) of a run's curve; empty if it has none."""
        curve = curve_of(series, self.metric)
        return np.array([]) if curve is None else np.asarray(curve.value)[np.isfinite(curve.value)]
