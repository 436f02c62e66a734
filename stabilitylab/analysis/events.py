"""Events in gradients: spikes, episodes and lags, as frozen dataclasses. `results` combines them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spike:
    """A gradient spike of one layer. Iterations are inclusive.

    ``onset``: where it reaches half its height; its first value for published rules and non-finite events. ``ratio``:
    peak over the running median. ``z``: robust z-score of the peak on the log scale. Both are inf for non-finite
    events. ``kind``: ``spike`` or ``nonfinite``. ``lasted``: longest run of consecutive values above the closing level;
    1 points to a single batch, 3 or more to a lasting state (see `nature`), 0 is unknown.
    """

    layer: str
    onset: int
    peak: int
    end: int
    ratio: float
    z: float
    kind: str = "spike"
    lasted: int = 0

    @property
    def nature(self) -> str:
        """``one batch``, ``short`` (two values) or ``lasting``; empty if unknown."""
        return {0: "", 1: "one batch", 2: "short"}.get(self.lasted, "lasting")


@dataclass(frozen=True, slots=True)
class Episode:
    """Spikes of several layers that are close in time. Iterations are inclusive.

    ``leader``: the layer whose spike opens the episode. ``order``: (layer, onset) of each layer that takes part, in
    order of onset. ``reach``: share of the trained layers that take part. ``peak_layer``, ``peak``, ``ratio``, ``z``:
    those of the largest spike. ``order_known``: False if a second layer opened at the same iteration or within a
    recording step, so that the first one is unknown.
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
    """False alarms, estimated by running the detector on the mirrored series of all layers.

    The threshold is fitted to the mirrored series, so in short runs the count there is biased low. ``expected`` is
    therefore the larger of that count and the configured rate. ``p_value``: probability of at least as many spikes as
    were detected if all were false alarms (Poisson).
    """

    mirrored_events: int
    per_10k_iterations: float
    expected: float = 0.0
    p_value: float = 1.0


def chance_of(spikes: int, expected: float) -> float:
    """Probability of at least ``spikes`` false alarms if ``expected`` are expected (Poisson).

    >>> round(chance_of(3, 0.5), 4)
    0.0144
    """
    from scipy.stats import poisson

    return float(poisson.sf(spikes - 1, expected)) if expected else float(spikes == 0)


@dataclass(frozen=True, slots=True)
class CrossLag:
    """Lag by cross-correlation of two layers' scores.

    ``lag``: where the correlation is highest, in iterations. ``correlation``: its value, 0 to 1. ``p_value``:
    probability of such a correlation by chance.
    """

    lag: float
    ci95: tuple[float, float]
    correlation: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Lag:
    """Iterations from a spike in ``source`` to the matching spike in ``target`` (negative: target first).

    ``verdict``: ``first leads``, ``last leads``, ``together``, ``not resolvable`` or ``inconclusive``; ``reason`` says
    why. ``resolution``: the recording step, which ``ci95`` includes; no shorter lag can be resolved. ``lags``: the lags
    of the matched pairs. ``null_lags``: lags under circular shifts, for plots. ``cross``: the estimate by
    cross-correlation. ``agree``: whether its interval overlaps ``ci95``; None if either may be chance.
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
class LossSpikes:
    """Spikes of the training loss, and the lag from them to the spikes of each layer (negative: the layer first).
    ``reason``: why the loss could not be judged."""

    spikes: tuple[Spike, ...]
    lags: tuple[Lag, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LayerLag:
    """Median lag of one layer behind the first layer, in iterations; None without matches. ``verdict``: as in `Lag`,
    empty with fewer than five matches."""

    layer: str
    depth: int
    median_lag: float | None
    num_matched: int
    ci95: tuple[float, float] | None = None
    p_value: float | None = None
    cross: CrossLag | None = None
    verdict: str = ""
