"""Dip detection on simulated kNN curves with binomial noise: precision and recall by depth, length and sampling.

    python benchmarks/dips.py [--quick]

Curves of 60 to 400 evaluations rise (quickly, slowly or hardly) and level off. They are evaluated at regular or
irregular iterations on 200 to 10,000 images, with some values missing. Dips are square or recover exponentially; they
are 4 to 12 standard errors deep and 3 to 20 evaluations long. A detected dip is correct if it overlaps a planted one.
Dips of a single evaluation are listed separately: at a depth of 4 +- 1 standard errors, no method can reach a recall of
0.95.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.analysis.dips import find_dips
from stabilitylab.analysis.results import Dip, EvalCurve

DEPTHS = ((4, 5), (5, 7), (7, 12))
LENGTHS = ((1, 1), (2, 2), (3, 5), (6, 20))


def curve(seed: int, depth: tuple[float, float], length: tuple[int, int]) -> tuple[EvalCurve, list[tuple[int, int]]]:
    """A curve, and the first and last iteration of each planted dip."""
    rng = np.random.default_rng([5, seed])
    n = int(rng.integers(60, 401))
    gaps = np.full(n, 10) if seed % 2 else rng.integers(3, 40, n)
    iteration = np.cumsum(gaps)
    t = np.arange(n) / n
    low, high = rng.uniform(0.1, 0.4), rng.uniform(0.6, 0.9)
    truth = high - (high - low) * np.exp(-t / rng.choice([0.05, 0.2, 0.6]))
    images = int(rng.choice([200, 400, 1000, 10_000]))
    places = []
    at = int(rng.integers(25, 35))
    while at < n - 25:
        width = int(rng.integers(length[0], length[1] + 1))
        error = np.sqrt(truth[at] * (1 - truth[at]) / images)
        drop = max(rng.uniform(*depth) * error, 0.012)
        shape = np.ones(width)
        if rng.random() < 0.3 and width > 3:  # drops at once and recovers gradually
            shape = np.exp(-np.arange(width) / (width / 2.5))
        # As in the definition: below the level reached before, however steep the curve is.
        truth[at : at + width] = np.minimum(truth[at : at + width], truth[at - 1] - drop * shape)
        places.append((int(iteration[at]), int(iteration[at + width - 1])))
        at += width + int(rng.integers(30, 80))
    value = rng.binomial(images, np.clip(truth, 0, 1)) / images
    if seed % 3 == 0:
        value[rng.random(n) < 0.1] = np.nan
    return EvalCurve(iteration, value, np.full(n, images)), places


def without_samples(measured: EvalCurve) -> EvalCurve:
    return replace(measured, num_samples=np.zeros_like(measured.num_samples))


def overlap(dip: Dip, place: tuple[int, int], slack: int = 20) -> bool:
    end = np.inf if dip.recovered is None else dip.recovered
    return dip.start <= place[1] + slack and end >= place[0] - slack


def score(
    runs: int, depth: tuple[float, float], length: tuple[int, int], *, known: bool = True
) -> tuple[int, int, int, int]:
    """Numbers of found, planted, correct and reported dips. ``known``: whether the curves tell their number of images;
    if not, the sampling error is estimated from the curve's own noise."""
    hits = planted = right = reported = 0
    for seed in range(runs):
        measured, places = curve(seed, depth, length)
        dips = find_dips(measured if known else without_samples(measured))
        hits += sum(any(overlap(dip, place) for dip in dips) for place in places)
        right += sum(any(overlap(dip, place) for place in places) for dip in dips)
        planted += len(places)
        reported += len(dips)
    return hits, planted, right, reported


def main(runs: int) -> None:
    print(f"dips, {runs} curves a cell: precision / recall by depth in standard errors and length in evaluations")
    print(f"{'depth':<10}" + "".join(f"{f'{low}-{high}':>16}" for low, high in LENGTHS))
    totals = np.zeros(4)
    for depth in DEPTHS:
        cells = []
        for length in LENGTHS:
            found = score(runs, depth, length)
            hits, planted, right, reported = found
            totals += np.array(found) * (length[0] >= 3)
            cells.append(f"{right / max(reported, 1):.3f} / {hits / planted:.3f}")
        print(f"{f'{depth[0]}-{depth[1]}':<10}" + "".join(f"{cell:>16}" for cell in cells))
    hits, planted, right, reported = totals
    print(f"3 evaluations or longer, all depths: precision {right / reported:.3f}, recall {hits / planted:.3f}")
    unknown = np.sum([score(runs, depth, length, known=False) for depth in DEPTHS for length in LENGTHS[2:]], axis=0)
    print(
        f"the same, sampling error unknown (a loss, or no num_samples): precision {unknown[2] / unknown[3]:.3f}, "
        f"recall {unknown[0] / unknown[1]:.3f}"
    )
    quiet = sum(len(find_dips(curve(seed, (0, 0), (0, 0))[0])) for seed in range(runs)) / runs
    flat = [without_samples(curve(seed, (0, 0), (0, 0))[0]) for seed in range(runs)]
    blind = sum(len(find_dips(one)) for one in flat) / runs
    print(f"curves without any dip: {quiet:.3f} found a curve, {blind:.3f} with unknown sampling error")
    if min(right / reported, hits / planted) < 0.95:
        raise SystemExit("below 0.95")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the curves")
    main(30 if parser.parse_args().quick else 300)
