"""What analysis returns: frozen dataclasses. What it takes is in ``series.py``.

Every number of a report or a JSON answer is a field of one of these. Nothing here reads a store or
draws. Definitions: README, "How each number is defined".
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from stabilitylab.analysis.collapse import Collapse
from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.drift import Drift
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
    """The metric that dips were looked for in. ``goal``: max or min; ``scale``: fraction, percent, log (a perplexity)
    or value; ``num_values``: finite evaluations; ``chosen``: why this metric."""

    name: str = "knn_top1"
    goal: str = "max"
    scale: str = "fraction"
    num_values: int = 0
    chosen: str = ""

    @property
    def judged(self) -> bool:
        """False where no curve could be judged."""
        return bool(self.name)

    @property
    def share(self) -> bool:
        """Whether values and depths are shares, shown in percent and points."""
        return self.scale in ("fraction", "percent")


@dataclass(frozen=True, slots=True)
class SpikeRef:
    """The spike a dip is linked to."""

    layer: str
    onset: int


@dataclass(frozen=True, slots=True)
class Dip:
    """A stretch in which the judged metric is worse than what it had reached: a drop of an accuracy, a rise of a loss.

    ``depth`` is a fraction for accuracies (also those recorded in percent), a difference for losses, a difference of
    logarithms for perplexities; ``z`` in standard errors, ``area`` in depth x iterations, ``recovered`` None where the
    run ended first.
    """

    start: int
    trough: int
    recovered: int | None
    depth: float
    z: float
    area: float
    after_spike: SpikeRef | None = None


@dataclass(frozen=True, slots=True)
class DipLink:
    """How many dips follow a spike, against chance (circular shifts of the spikes)."""

    num_dips: int
    num_linked: int
    expected_by_chance: float | None
    p_value: float | None


@dataclass(frozen=True, slots=True)
class EarlyWarning:
    """Does ``signal`` rise before spikes do? Leads in iterations; a spike is warned of at most ``horizon`` before.

    ``hit_rate`` is the share of spikes warned of, ``hit_rate_by_chance`` the same under circular shifts. ``layer``: the
    one judged, in a table of signals and layers; empty for all. ``p_holm`` is corrected over such a table.
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
    """The whole answer for one run. A part that was not asked for is None; ``notes`` name what lacked data.

    ``metric`` is what dips were looked for in. Where no curve could be judged its name is empty, ``chosen`` says why,
    and ``dips`` is None: not judged, which is not the same as none found.
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

    def only(self, *, spikes: bool, lag: bool, dips: bool) -> RunAnalysis:
        """The parts asked for; the rest becomes None."""
        found = self
        if not spikes:
            found = replace(
                found,
                spikes=None,
                false_alarms=None,
                episodes=None,
                early_warning=None,
                early_warnings=None,
                drifts=None,
                loss_spikes=None,
            )
        found = found if lag else replace(found, lag=None, propagation=None)
        return found if dips else replace(found, collapse=None, dips=None, dip_link=None, metric=None)

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract, schema 1: plain types only; what is not finite becomes None."""
        out: dict[str, Any] = {"schema": SCHEMA_VERSION, "run": self.run, "iterations": self.iterations}
        out["layers"] = [{"name": name, "depth": depth} for name, depth in self.layers]
        if self.spikes is not None:
            out["spikes"] = [asdict(spike) for spike in self.spikes]
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


def _lag_as_dict(found: Lag) -> dict[str, Any]:
    lag = asdict(found)
    kept = {key: value for key, value in lag.items() if key not in ("source", "target", "lags", "null_lags")}
    return {"from": lag["source"], "to": lag["target"]} | kept


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
