"""Lag estimation if not every iteration is recorded.

    python benchmarks/resolution.py [--quick]

Two layers over 40,000 iterations with 80 spikes that decay over 40 iterations; their heights, drawn independently in
each layer, are 3 to 12 times the usual norm. Spikes of the last layer follow those of the first after a planted lag of
0 to 60. Recorded every 1 to 50 iterations: single iterations, means over the step, or the maximum of each bucket. "not
said": means that the log does not declare as such. Fails if intervals cover the truth in less than 93%, or if a
verdict claims an order although the lag is below the recording step.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._truth import ar_noise, spaced
from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.results import Lag
from stabilitylab.analysis.series import LayerSeries, RunSeries

N, SPIKES, DECAY = 40_000, 80, 40
LAGS = (0, 1, 2, 4, 6, 10, 15, 20, 30, 45, 60)
STEPS = (1, 2, 5, 10, 25, 50)
KINDS = ("sampled", "mean", "bucket", "not said")
COVERED = 0.93


def two_layers(seed: int, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """The norms (N,) of the first and the last layer."""
    rng = np.random.default_rng([16, seed, lag])
    phi = float(rng.choice([0.0, 0.5]))
    first, last = (np.exp(0.12 * ar_noise(rng, N, phi=phi)) for _ in range(2))
    onsets = spaced(rng, N, SPIKES, apart=300)
    for x, late in ((first, 0), (last, lag)):
        for onset in onsets + late:
            t = np.arange(onset, min(onset + 4 * DECAY, N))
            x[t] *= 1 + rng.uniform(2, 11) * np.exp(-(t - onset) / DECAY)
    return first, last


def recorded(x: np.ndarray, step: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows of ``x`` in a log with such a step."""
    blocks = x[: len(x) // step * step].reshape(-1, step)
    value = {"sampled": blocks[:, 0], "bucket": blocks.max(1)}.get(kind, blocks.mean(1))
    return np.arange(len(blocks)) * step, value


def lag_of(layers: tuple[np.ndarray, np.ndarray], step: int, kind: str) -> Lag:
    series = tuple(
        LayerSeries(name, depth, *recorded(x, step, kind))
        for depth, (name, x) in enumerate(zip(("first", "last"), layers, strict=True))
    )
    rows = "" if kind == "not said" else kind
    found = analyze_run(RunSeries("r", N, series, rows=rows), dips=False).lag
    assert found is not None
    return found


def study(seeds: int) -> bool:
    cells: dict[tuple[int, str], list[tuple[int, Lag]]] = {}
    for lag in LAGS:
        for seed in range(seeds):
            layers = two_layers(seed, lag)
            for step in STEPS:
                for kind in KINDS if step > 1 else ("sampled",):
                    cells.setdefault((step, kind), []).append((lag, lag_of(layers, step, kind)))
    print(
        f"lags {LAGS[0]} to {LAGS[-1]}, {seeds * len(LAGS)} runs a row; an order is overclaimed where the lag is below"
    )
    print("the step, or reversed")
    print(f"{'step':>5}{'rows':>10}{'given':>7}{'covers':>8}{'width':>7}{'overclaims':>12}   verdicts")
    kept = True
    for (step, kind), rows in cells.items():
        given = [(lag, found) for lag, found in rows if found.ci95 is not None]
        covers = np.mean([f.ci95[0] <= lag <= f.ci95[1] for lag, f in given if f.ci95])
        width = np.median([f.ci95[1] - f.ci95[0] for _, f in given if f.ci95])
        over = sum(
            f.verdict == "last leads" or (f.verdict == "first leads" and (lag == 0 or (step > 1 and lag < step)))
            for lag, f in given
        )
        verdicts = ", ".join(f"{v} {n}" for v, n in Counter(f.verdict for _, f in rows).most_common())
        print(f"{step:>5}{kind:>10}{len(given):>7}{covers:>8.3f}{width:>7.1f}{over:>12}   {verdicts}")
        kept &= bool(covers >= COVERED) and over == 0
    return kept


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 seeds a lag instead of 10; the limits are not checked")
    parser.add_argument("--seeds", type=int, default=10, help="how many, in each row")
    given = parser.parse_args()
    quick = given.quick
    if not (study(2 if quick else given.seeds) or quick):
        raise SystemExit("a limit is not kept")
