"""The results of an analysis, as frozen dataclasses. Its inputs are in ``series.py``.

Every number in a report or in JSON output is a field of one of these classes. They neither read a store nor draw.
Definitions: README, "How each number is defined".
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from stabilitylab.analysis.collapse import Collapse as Collapse
from stabilitylab.analysis.collapse import Sign as Sign
from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.drift import Drift as Drift
from stabilitylab.analysis.events import CrossLag as CrossLag
from stabilitylab.analysis.events import Episode as Episode
from stabilitylab.analysis.events import FalseAlarms as FalseAlarms
from stabilitylab.analysis.events import Lag as Lag
from stabilitylab.analysis.events import LayerLag as LayerLag
from stabilitylab.analysis.events import LossSpikes as LossSpikes
from stabilitylab.analysis.events import Spike as Spike
from stabilitylab.analysis.events import chance_of as chance_of
from stabilitylab.analysis.resolution import Resolution
from stabilitylab.analysis.series import EvalCurve as EvalCurve
from stabilitylab.analysis.series import LayerSeries as LayerSeries
from stabilitylab.analysis.series import RunSeries as RunSeries

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class JudgedMetric:
    """The metric in which dips were detected. ``goal``: ``max`` or ``min``. ``scale``: ``fraction``, ``percent``,
    ``log`` (a perplexity) or ``value``. ``num_values``: number of finite evaluations. ``chosen``: why this metric."""

    name: str = "knn_top1"
    goal: str = "max"
    scale: str = "fraction"
    num_values: int = 0
    chosen: str = ""

    @property
    def judged(self) -> bool:
        """False if no metric could be judged."""
        return bool(self.name)

    @property
    def share(self) -> bool:
        """Whether the values are proportions, shown in percent, and depths in percentage points."""
        return self.scale in ("fraction", "percent")


@dataclass(frozen=True, slots=True)
class SpikeRef:
    """The spike to which a dip is linked."""

    layer: str
    onset: int


@dataclass(frozen=True, slots=True)
class Dip:
    """A period in which the judged metric is worse than the level it had reached: a drop of accuracy, a rise of loss.

    ``start``, ``trough``: iterations. ``recovered``: iteration of the recovery; None if the run ended first. ``depth``:
    a fraction for accuracies (also if recorded in percent), a difference for losses, a difference of logarithms for
    perplexities. ``z``: depth in standard errors. ``area``: depth x iterations.

    ``start`` is the first evaluation in the dip, which began after ``began_after``, the previous evaluation (None if
    there is none). The dip ended between ``down_until``, its last evaluation, and ``recovered``. A spike between
    ``began_after`` and ``start`` may have occurred before or after the beginning of the dip.
    """

    start: int
    trough: int
    recovered: int | None
    depth: float
    z: float
    area: float
    after_spike: SpikeRef | None = None
    began_after: int | None = None
    down_until: int | None = None

    @property
    def earliest(self) -> int:
        """The first iteration at which the dip may have begun."""
        return self.start if self.began_after is None else min(self.began_after + 1, self.start)

    @property
    def order_known(self) -> bool:
        """Whether the linked spike opened before the dip may have begun."""
        return self.after_spike is not None and self.after_spike.onset <= self.earliest


@dataclass(frozen=True, slots=True)
class DipLink:
    """Number of dips that follow a spike, compared with chance (circular shifts of the spikes)."""

    num_dips: int
    num_linked: int
    expected_by_chance: float | None
    p_value: float | None


@dataclass(frozen=True, slots=True)
class EarlyWarning:
    """Whether ``signal`` rises before spikes.

    A spike is predicted if an alarm of the signal opens at most ``horizon`` iterations before it. ``hit_rate``: share
    of spikes predicted; ``hit_rate_by_chance``: the same under circular shifts. ``median_lead``, ``lead_ci95``: in
    iterations. ``layer``: the layer judged, empty for all layers together. ``p_holm``: p-value corrected over the table
    of signals and layers.
    """

    signal: str
    horizon: int
    num_spikes: int
    num_warned: int
    num_alarms: int
    num_false: int
    hit_rate: float | None = None
    hit_ci95: tuple[float, float] | None = None
    false_per_10k: float | None = None
    hit_rate_by_chance: float | None = None
    p_value: float | None = None
    median_lead: float | None = None
    lead_ci95: tuple[float, float] | None = None
    reason: str = ""
    layer: str = ""
    p_holm: float | None = None


@dataclass(frozen=True, slots=True)
class RunAnalysis:
    """The analysis of one run. Parts that were not requested are None; ``notes`` lists what lacked data.

    ``metric``: the metric in which dips were detected. If none could be judged, its name is empty, ``chosen`` says why,
    and ``dips`` is None (not judged) instead of empty (no dips detected). ``spikes_reason``: why spikes were not
    judged in any layer, such as too few values; ``spikes`` then contains at most non-finite gradients.
    """

    run: str
    iterations: int
    layers: tuple[tuple[str, int], ...]
    spikes: tuple[Spike, ...] | None = None
    false_alarms: FalseAlarms | None = None
    episodes: tuple[Episode, ...] | None = None
    lag: Lag | None = None
    propagation: tuple[LayerLag, ...] | None = None
    dips: tuple[Dip, ...] | None = None
    dip_link: DipLink | None = None
    metric: JudgedMetric | None = None
    early_warning: EarlyWarning | None = None
    settings: SpikeSettings | None = None
    notes: tuple[str, ...] = ()
    resolution: Resolution | None = None
    drifts: tuple[Drift, ...] | None = None
    collapse: Collapse | None = None
    loss_spikes: LossSpikes | None = None
    early_warnings: tuple[EarlyWarning, ...] | None = None
    spikes_reason: str = ""

    @property
    def certain_drifts(self) -> tuple[Drift, ...]:
        """The drifts whose slope differs from 0; empty if drift was not judged."""
        return tuple(drift for drift in self.drifts or () if drift.certain)

    @property
    def spikes_unjudged(self) -> bool:
        """Whether spikes were asked for, but could not be judged, and no gradient was non-finite."""
        return self.spikes == () and bool(self.spikes_reason)

    def only(self, *, spikes: bool, lag: bool, dips: bool) -> RunAnalysis:
        """A copy with only the requested parts; the others are None."""
        kept = self
        if not spikes:
            kept = replace(
                kept,
                spikes=None,
                false_alarms=None,
                episodes=None,
                early_warning=None,
                early_warnings=None,
                drifts=None,
                loss_spikes=None,
            )
        kept = kept if lag else replace(kept, lag=None, propagation=None)
        return kept if dips else replace(kept, collapse=None, dips=None, dip_link=None, metric=None)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain types, the stable JSON schema 1. Non-finite numbers become None."""
        out: dict[str, Any] = {"schema": SCHEMA_VERSION, "run": self.run, "iterations": self.iterations}
        out["layers"] = [{"name": name, "depth": depth} for name, depth in self.layers]
        if self.spikes is not None:
            out["spikes"] = [asdict(spike) for spike in self.spikes]
            out["spikes_reason"] = self.spikes_reason
        if self.false_alarms is not None:
            out["false_alarms"] = asdict(self.false_alarms)
        if self.episodes is not None:
            out["episodes"] = [
                asdict(episode) | {"order": [{"layer": layer, "onset": onset} for layer, onset in episode.order]}
                for episode in self.episodes
            ]
        if self.lag is not None:
            out["lag"] = _lag_as_dict(self.lag)
        if self.propagation is not None:
            out["propagation"] = [asdict(row) for row in self.propagation]
        if self.dips is not None or self.metric is not None:
            out["dips"] = None if self.dips is None else [asdict(dip) for dip in self.dips]
        if self.metric is not None:
            out["metric"] = asdict(self.metric)
        if self.dip_link is not None:
            out["dip_link"] = asdict(self.dip_link)
        if self.early_warning is not None:
            out["early_warning"] = asdict(self.early_warning)
        if self.settings is not None:
            out["settings"] = asdict(self.settings)
        if self.early_warnings is not None:
            out["early_warnings"] = [asdict(row) for row in self.early_warnings]
        if self.drifts is not None:
            out["drifts"] = [asdict(drift) for drift in self.drifts]
        if self.collapse is not None:
            out["collapse"] = asdict(self.collapse)
        if self.loss_spikes is not None:
            out["loss_spikes"] = {
                "spikes": [asdict(spike) for spike in self.loss_spikes.spikes],
                "lags": [_lag_as_dict(lag) for lag in self.loss_spikes.lags],
                "reason": self.loss_spikes.reason,
            }
        if self.resolution is not None:
            seen = [{"width": width, "probability": p} for width, p in self.resolution.seen]
            out["resolution"] = asdict(self.resolution) | {"seen": seen}
        out["notes"] = list(self.notes)
        answer: dict[str, Any] = plain(out)
        return answer


def _lag_as_dict(measured: Lag) -> dict[str, Any]:
    lag = asdict(measured)
    kept = {key: value for key, value in lag.items() if key not in ("source", "target", "lags", "null_lags")}
    return {"from": lag["source"], "to": lag["target"]} | kept


def plain(value: Any) -> Any:
    """Replace NaN and infinity with None in nested dicts and lists, because JSON has neither."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
