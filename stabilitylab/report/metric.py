"""How the judged metric is written: its name, its unit, and which end of a curve is its best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.metrics import curve_of, depth_text, metric_label
from stabilitylab.analysis.results import JudgedMetric, RunAnalysis, RunSeries
from stabilitylab.comparison.results import Comparison


@dataclass(frozen=True, slots=True)
class MetricText:
    """The words and numbers of one metric. Values are as they were recorded; shares are written in percent."""

    metric: JudgedMetric

    @classmethod
    def of(cls, found: Sequence[RunAnalysis]) -> MetricText:
        """Of several runs, that of the first that was judged; kNN accuracy where none was."""
        judged = [a.metric for a in found if a.metric is not None and a.metric.judged]
        return cls(judged[0] if judged else JudgedMetric())

    @classmethod
    def of_comparison(cls, comparison: Comparison | None) -> MetricText:
        if comparison is None:
            return cls(JudgedMetric())
        return cls(JudgedMetric(comparison.metric, comparison.goal, comparison.scale))

    @property
    def label(self) -> str:
        """``kNN accuracy``, ``training loss``, or the metric's own name."""
        return metric_label(self.metric.name)

    @property
    def short(self) -> str:
        """The label where room is scarce: ``kNN``."""
        return "kNN" if self.metric.name == "knn_top1" else self.label

    @property
    def title(self) -> str:
        """The label with its unit, as it stands at an axis."""
        name = "kNN top-1" if self.metric.name == "knn_top1" else self.label
        return f"{name}, %" if self.metric.share else name

    @property
    def factor(self) -> float:
        """From a recorded value to the shown one."""
        return 100.0 if self.metric.scale == "fraction" else 1.0

    @property
    def higher(self) -> bool:
        return self.metric.goal == "max"

    @property
    def final_column(self) -> str:
        """The comparison's column of the final value."""
        return "final_knn" if self.metric.name == "knn_top1" else f"final_{self.metric.name}"

    def number(self, value: float, sign: str = "") -> str:
        """A value without its unit: one decimal of a share, else four digits."""
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
        """The finite values of a run's curve (n,); empty where it has none."""
        curve = curve_of(series, self.metric)
        return np.array([]) if curve is None else np.asarray(curve.value)[np.isfinite(curve.value)]
