"""What is found in gradients: spikes, episodes, lags. Frozen dataclasses; `results` puts them together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spike:
    """A gradient spike of one layer. Iterations are inclusive; ``onset`` is where it reaches half its height,
    or its first value for the published rules and for ``kind`` ``nonfinite`` (else ``spike``).

    ``lasted`` counts the recorded values in a row above the closing level, at their longest: 1 is the work of one
    batch, 3 or more a state that lasts (`nature`); 0 where it is not known.

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
    lasted: int = 0

    @property
    def nature(self) -> str:
        """``one batch``, ``short`` (two values) or ``lasting``; empty where it is not known."""
        return {0: "", 1: "one batch", 2: "short"}.get(self.lasted, "lasting")


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
class LossSpikes:
    """Spikes of the training loss, and the lag from them to each layer that spikes (negative: the layer first).
    ``reason`` says why there are none to judge."""

    spikes: tuple[Spike, ...]
    lags: tuple[Lag, ...]
    reason: str = ""


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
