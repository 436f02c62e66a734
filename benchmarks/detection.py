"""False alarms, recall and speed of the spike detector, beside a fixed threshold.

    python benchmarks/detection.py [--quick]

False alarms are events per 10,000 iterations and layer on noise alone (the promise: 1), with a Poisson 95%
interval; the ratio rule is off, so that the threshold stands alone. Recall is the share of planted spikes
(5 iterations long, log-normal noise of sd 0.25) whose onset is found within 2 iterations.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import median_filter
from scipy.stats import chi2

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.analysis.spikes import SpikeSettings, detect_spikes
from tests.synthetic import layer_series, noise, plant, spread_onsets

NOISES = [(kind, phi) for kind in ("normal", "t3") for phi in (0.0, 0.5, 0.9)]


def false_alarms(runs: int, n: int = 10_000) -> None:
    print("false alarms per 10,000 iterations and layer (ratio rule off)")
    print(f"{'noise':<8}{'phi':>5}{'calibrated':>12}{'95% interval':>18}{'fixed z = 6':>13}")
    calibrated = SpikeSettings(ratio_open=1.0)
    fixed = SpikeSettings(ratio_open=1.0, false_alarms_per_10k=None)
    for kind, phi in NOISES:
        layers = [layer_series(noise(n, seed=s, kind=kind, phi=phi)) for s in range(runs)]
        mine = sum(len(detect_spikes(layer, calibrated)) for layer in layers)
        theirs = sum(len(detect_spikes(layer, fixed)) for layer in layers)
        low = chi2.ppf(0.025, 2 * mine) / 2 if mine else 0.0
        high = chi2.ppf(0.975, 2 * mine + 2) / 2
        print(f"{kind:<8}{phi:>5}{mine / runs:>12.2f}{low / runs:>9.2f} to {high / runs:>5.2f}{theirs / runs:>13.2f}")


def recall(runs: int, n: int = 10_000) -> None:
    print("\nrecall of planted spikes, default settings, by height (times the usual norm)")
    heights = (2.5, 4.0, 8.0, 16.0)
    print(f"{'noise':<8}{'phi':>5}" + "".join(f"{h:>8g}x" for h in heights))
    for kind, phi in NOISES:
        shares = []
        for height in heights:
            found = planted = 0
            for seed in range(runs):
                onsets = spread_onsets(np.random.default_rng(seed), 30, n)
                x = plant(noise(n, seed=seed, kind=kind, phi=phi), onsets, np.log(height))
                mine = np.array([s.onset for s in detect_spikes(layer_series(x))] or [-100])
                found += int((np.abs(mine[:, None] - onsets).min(axis=0) <= 2).sum())
                planted += len(onsets)
            shares.append(found / planted)
        print(f"{kind:<8}{phi:>5}" + "".join(f"{share:>9.2f}" for share in shares))


def speed(n: int) -> None:
    series = layer_series(plant(noise(n, seed=0), range(1000, n - 1000, 2500), 3.0))
    detect, median = [], []
    for _ in range(3):  # interleaved: the machine's noise hits both
        started = time.perf_counter()
        detect_spikes(series)
        detect.append(time.perf_counter() - started)
        started = time.perf_counter()
        median_filter(series.grad_norm, size=201)
        median.append(time.perf_counter() - started)
    ratio = min(detect) / min(median)
    print(f"\nspeed: {n:,} iterations of one layer in {min(detect):.3f} s, {ratio:.1f} times one rolling median")
    if ratio > 20:
        raise SystemExit("the detector costs more than 20 rolling medians")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    quick = parser.parse_args().quick
    false_alarms(10 if quick else 100)
    recall(2 if quick else 10)
    speed(20_000 if quick else 100_000)
