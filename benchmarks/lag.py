"""Lag estimation: coverage and width of the 95% interval, and the false-positive rate for unrelated layers.

    python benchmarks/lag.py [--quick]

Series of two layers over 6,000 iterations with AR(1) noise (normal or t3 shocks) and 12 to 40 spikes in the first
layer. Each spike reaches the last layer after a planted lag of -40 to +60 iterations with a jitter of sd 0 to 5; 25%
never arrive, and the last layer has as many spikes of its own. Ramps: spikes rise over 4 to 12 iterations and are 0.4
times as high in the last layer. Unrelated: the same without a relation between the layers. Fails if intervals cover
the truth in less than 93%, or p < 0.05 in more than 6.5% of unrelated pairs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._truth import add_spike, ar_noise, layer, spaced
from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.results import Lag, RunAnalysis, RunSeries

N = 6000
MISSED = 0.25
COVERED, BY_CHANCE = 0.93, 0.065


def two_layers(seed: int, *, related: bool, n: int = N) -> tuple[RunAnalysis, int]:
    """The analysis of a run with planted spikes, and the planted lag."""
    rng = np.random.default_rng([20_217, seed, related])
    kind, phi = str(rng.choice(["normal", "t3"])), float(rng.choice([0.0, 0.5, 0.9]))
    first, last = (0.2 * ar_noise(rng, n, kind=kind, phi=phi) for _ in range(2))
    count = int(rng.integers(n // 500, n // 150 + 1))
    onsets = spaced(rng, n, count, apart=50)
    lag, jitter = int(rng.integers(-40, 61)), rng.uniform(0, 5)
    arrived = onsets[rng.random(count) > MISSED]
    arrived = arrived + lag + np.rint(rng.normal(0, jitter, len(arrived))).astype(int)
    own = rng.integers(300, n - 150, count if not related else count - len(arrived))
    for x, places in ((first, onsets), (last, np.concatenate([arrived, own]) if related else own)):
        for onset in places:
            add_spike(x, int(onset), rng.uniform(1.2, 3.0), int(rng.integers(2, 15)))
    return analyzed(first, last), lag


def analyzed(first: np.ndarray, last: np.ndarray) -> RunAnalysis:
    return analyze_run(RunSeries("r", len(first), (layer(first, "first", 0), layer(last, "last", 1))), dips=False)


def two_ramped_layers(seed: int, n: int = N) -> tuple[Lag, int]:
    """Spikes of different heights that rise slowly, so that the lag depends on how onsets are timed."""
    rng = np.random.default_rng([20_218, seed])
    kind, phi = str(rng.choice(["normal", "t3"])), float(rng.choice([0.0, 0.5, 0.9]))
    first, last = (0.2 * ar_noise(rng, n, kind=kind, phi=phi) for _ in range(2))
    lag = int(rng.integers(-40, 61))
    for onset in spaced(rng, n, 20, apart=150):
        rise, height = int(rng.integers(4, 13)), rng.uniform(3, 5)
        shape = np.concatenate([np.arange(1, rise) / rise, np.ones(5), np.linspace(1, 0, 3 * rise)])
        for x, at, share in ((first, int(onset), 1.0), (last, int(onset) + lag, 0.4)):
            x[at : at + len(shape)] += share * height * shape
    found = analyzed(first, last).lag
    assert found is not None
    return found, lag


def ramps(runs: int) -> bool:
    lags = [two_ramped_layers(seed) for seed in range(runs)]
    given = [(x.ci95, x.median_iterations, lag) for x, lag in lags if x.ci95 and x.median_iterations is not None]
    covers = np.mean([low <= lag <= high for (low, high), _, lag in given])
    width = np.median([high - low for (low, high), _, _ in given])
    bias = np.mean([middle - lag for _, middle, lag in given])
    print(f"\nramps: {len(given)} of {runs} with 5 matched events")
    print(f"matched events: covers {covers:.3f}, width {width:.1f}, bias {bias:+.2f} iterations")
    return bool(covers >= COVERED)


def planted(runs: int) -> bool:
    """Draw series until ``runs`` of them have an interval."""
    lags: list[tuple[Lag, int]] = []
    while sum(x.ci95 is not None for x, _ in lags) < runs:
        found, lag = two_layers(len(lags), related=True)
        assert found.lag is not None
        lags.append((found.lag, lag))
    print(f"planted lags: {len(lags)} series, of which {runs} have 5 matched events")
    print(f"{'estimate':<20}{'given':>7}{'covers':>8}{'width':>7}{'error':>7}{'p < 0.05':>10}")
    events = [(x.ci95, x.median_iterations, x.p_value, lag) for x, lag in lags if x.ci95 and x.p_value is not None]
    cross = [(x.cross.ci95, x.cross.lag, x.cross.p_value, lag) for x, lag in lags if x.cross]
    kept = True
    for name, rows in (("matched events", events), ("cross-correlation", cross)):
        covers = np.mean([low <= lag <= high for (low, high), _, _, lag in rows])
        width = np.median([high - low for (low, high), _, _, _ in rows])
        error = np.median([abs((middle or 0) - lag) for _, middle, _, lag in rows])
        sure = np.mean([p < 0.05 for _, _, p, _ in rows])
        print(f"{name:<20}{len(rows):>7}{covers:>8.3f}{width:>7.1f}{error:>7.1f}{sure:>10.3f}")
        kept &= bool(covers >= COVERED)
    clear = [(x.verdict, lag) for x, lag in lags if abs(lag) >= 6]
    right = np.mean([verdict == ("first leads" if lag > 0 else "last leads") for verdict, lag in clear])
    wrong = np.mean([verdict == ("last leads" if lag > 0 else "first leads") for verdict, lag in clear])
    print(f"direction where the lag is 6 or more: right {right:.3f}, reversed {wrong:.3f}, the rest inconclusive")
    judged = [x.agree for x, _ in lags if x.agree is not None]
    print(f"the two estimates agree in {np.mean(judged):.3f} of {len(judged)}")
    return kept


def unrelated(runs: int) -> bool:
    print(f"\nno relation, {runs} series a row: share with p < 0.05 (at most {BY_CHANCE})")
    kept = True
    print(f"{'iterations':>10}{'events':>8}{'cross-correlation':>19}{'verdict not inconclusive':>26}")
    for n in (1500, N):
        lags = [two_layers(seed, related=False, n=n)[0].lag for seed in range(runs)]
        events = np.mean([x is not None and x.p_value is not None and x.p_value < 0.05 for x in lags])
        cross = np.mean([x is not None and x.cross is not None and x.cross.p_value < 0.05 for x in lags])
        verdict = np.mean([x is not None and x.verdict != "inconclusive" for x in lags])
        print(f"{n:>10}{events:>8.3f}{cross:>19.3f}{verdict:>26.3f}")
        kept &= bool(max(events, cross) <= BY_CHANCE)
    return kept


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50 series instead of 500; the limits are not checked")
    parser.add_argument("--series", type=int, default=500, help="how many, in each row")
    given = parser.parse_args()
    quick = given.quick
    runs = 50 if quick else given.series
    kept = [planted(runs), ramps(runs), unrelated(runs)]
    if not (all(kept) or quick):
        raise SystemExit("a limit is not kept")
