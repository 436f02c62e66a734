"""Spikes that decay slowly: how often is each reported as one event, and are neighbouring spikes kept apart?

    python benchmarks/decays.py [--series N]

1. Spikes that fall exponentially or in a straight line, with their length in iterations: the time constant, or the time
   until they reach the baseline. Each cell: share reported as one event / as several. The others are missed.
2. Pairs of spikes of 4 iterations at 12 noise sd, by the number of iterations between them: share reported as two.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._truth import ar_noise, layer, spaced
from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.spikes import detect_spikes

SETTINGS = SpikeSettings(ratio_open=1.0)
NOISES = (("normal", 0.0), ("normal", 0.5), ("normal", 0.9), ("t3", 0.5))
SHAPES = (("exponential", 30), ("exponential", 60), ("exponential", 100), ("line", 100), ("line", 200))
HEIGHTS = (6, 10, 20)
GAPS = (5, 8, 12, 20, 40)
SD, N = 0.15, 20_000


def onsets_in(x: np.ndarray) -> np.ndarray:
    return np.array([spike.onset for spike in detect_spikes(layer(SD * x), SETTINGS)], dtype=np.int64)


def decays(series: int) -> None:
    print(f"1. one event / several, {20 * series} spikes a cell")
    print(f"{'noise':<8}{'phi':>5}  {'shape':<18}" + "".join(f"{f'{height} sd':>14}" for height in HEIGHTS))
    time = np.arange(600)
    for kind, phi in NOISES:
        for shape, length in SHAPES:
            fall = np.exp(-time / length) if shape == "exponential" else np.maximum(1 - time / length, 0)
            cells = []
            for height in HEIGHTS:
                counts: list[int] = []
                for seed in range(series):
                    rng = np.random.default_rng([5, seed])
                    x = ar_noise(rng, N, kind=kind, phi=phi)
                    planted = spaced(rng, N, 20, apart=700)
                    for onset in planted:
                        x[onset : onset + 600] += height * fall[: N - onset]
                    found = onsets_in(x)
                    counts += [int(((found >= at - 5) & (found < at + 4 * length)).sum()) for at in planted]
                cells.append(f"{np.mean(np.equal(counts, 1)):.2f} / {np.mean(np.greater(counts, 1)):.2f}")
            print(
                f"{kind:<8}{phi:>5}  {f'{shape}, {length}':<18}" + "".join(f"{cell:>14}" for cell in cells), flush=True
            )


def pairs(series: int) -> None:
    print(f"\n2. pairs reported as two, {40 * series} a cell")
    print(f"{'noise':<8}{'phi':>5}" + "".join(f"{f'{gap} apart':>12}" for gap in GAPS))
    for kind, phi in NOISES:
        cells = []
        for gap in GAPS:
            kept: list[bool] = []
            for seed in range(series):
                rng = np.random.default_rng([6, seed])
                x = ar_noise(rng, N, kind=kind, phi=phi)
                planted = spaced(rng, N, 40, apart=400)
                for onset in planted:
                    x[onset : onset + 4] += 12
                    x[onset + 4 + gap : onset + 8 + gap] += 12
                found = onsets_in(x)
                for at in planted:
                    first = (found >= at - 2) & (found < at + 4)
                    second = (found >= at + 2 + gap) & (found < at + 8 + gap)
                    kept.append(bool(first.any() and second.any()))
            cells.append(f"{np.mean(kept):.2f}")
        print(f"{kind:<8}{phi:>5}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=10, help="of 20,000 iterations, in each cell")
    given = parser.parse_args()
    decays(given.series)
    pairs(given.series)
