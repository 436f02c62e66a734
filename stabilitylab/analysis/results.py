"""What analysis returns: frozen dataclasses. What it takes is in ``series.py``.

Every number of a report or a JSON answer is a field of one of these. Nothing here reads a store or
draws. Definitions: README, "How each number is defined".
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from stabilitylab.analysis.detection.settings import SpikeSettings
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
class Spike:
    """A gradient spike of one layer. Iterations are inclusive; ``onset`` is where it reaches half its height,
    or its first value for the published rules and for ``kind`` ``nonfinite`` (else ``spike``).

    ``ratio`` is peak over the trailing median; ``z`` its robust z-score on the log scale. Both are inf for
    non-finite events.
    """

    layer: str
    onset: int
    peak: int
    end: int
    ratio: float
    z: float
    kind: str = "spike"


@dataclass(frozen=True, slots=True)
class Episode:
    """Spikes of several layers that belong together. Iterations are inclusive.

    ``leader`` is the layer whose spike opens it, ``order`` (layer, onset) of each layer that takes part, by onset,
    ``reach`` the share of trained layers among them. ``peak_layer``, ``peak``, ``ratio`` and ``z`` are those of its
    largest spike. ``order_known`` is false where the record cannot tell which layer was first: another opened at the
    same iteration, or within a recording step.
    """

    start: int
    end: int
    leader: str
    order: tuple[tuple[str, int], ...]
    reach: float
    peak_layer: str
    peak: int
    ratio: float
    z: float
    order_known: bool = True


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """What chance alone flags: the same detector on the mirrored series, summed over layers.

    The threshold is fitted to that series, so in short runs it flags less than chance does: ``expected`` is the larger
    of its count and the rate asked for. ``p_value``: of as many spikes as were found, if chance brought them (Poisson).
    """

    mirrored_events: int
    per_10k_iterations: float
    expected: float = 0.0
    p_value: float = 1.0


def chance_of(spikes: int, expected: float) -> float:
    """Probability that chance brings at least ``spikes``, where it brings ``expected`` on average (Poisson)."""
    from scipy.stats import poisson

    return float(poisson.sf(spikes - 1, expected)) if expected else float(spikes == 0)


@dataclass(frozen=True, slots=True)
class CrossLag:
    """A lag by cross-correlation of two layers' scores: where they agree best, how well (0 to 1), and the level of
    chance of so high a correlation."""

    lag: float
    ci95: tuple[float, float]
    correlation: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Lag:
    """Iterations from a spike in ``source`` to the matching spike in ``target`` (negative: target first).

    ``verdict`` is one of ``first leads``, ``last leads``, ``together``, ``not resolvable``, ``inconclusive``;
    ``reason`` says why. ``resolution`` is the recording step that ``ci95`` allows for: no order below it can be told.
    ``lags`` are the matched pairs' lags; ``null_lags`` the same under circular shifts, for drawing. ``agree``: does
    the second estimate's interval meet ``ci95``; None where either may be chance.
    """

    source: str
    target: str
    median_iterations: float | None
    ci95: tuple[float, float] | None
    p_value: float | None
    num_matched: int
    num_from: int
    verdict: str
    reason: str
    lags: tuple[float, ...] = ()
    null_lags: tuple[float, ...] = ()
    cross: CrossLag | None = None
    agree: bool | None = None
    resolution: int = 1


@dataclass(frozen=True, slots=True)
class LayerLag:
    """Median lag of one layer behind the first trainable layer; None where nothing matched. ``verdict`` as `Lag`
    has it, empty below five matches."""

    layer: str
    depth: int
    median_lag: float | None
    num_matched: int
    ci95: tuple[float, float] | None = None
    p_value: float | None = None
    cross: CrossLag | None = None
    verdict: str = ""


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

    ``hit_rate`` is the share of spikes warned of, ``hit_rate_by_chance`` the same under circular shifts.
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

    def only(self, *, spikes: bool, lag: bool, dips: bool) -> RunAnalysis:
        """The parts asked for; the rest becomes None."""
        found = self if spikes else replace(self, spikes=None, false_alarms=None, episodes=None, early_warning=None)
        found = found if lag else replace(found, lag=None, propagation=None)
        return found if dips else replace(found, dips=None, dip_link=None, metric=None)

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
            lag = asdict(self.lag)
            out["lag"] = {"from": lag.pop("source"), "to": lag.pop("target")} | {
                key: value for key, value in lag.items() if key not in ("lags", "null_lags")
            }
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
        if self.resolution is not None:
            seen = [{"width": width, "probability": p} for width, p in self.resolution.seen]
            out["resolution"] = asdict(self.resolution) | {"seen": seen}
        out["notes"] = list(self.notes)
        answer: dict[str, Any] = plain(out)
        return answer


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
