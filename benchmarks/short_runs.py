"""Short runs: false events and recall with thresholds shared by the layers of a run, compared with z = 6.

    python benchmarks/short_runs.py [--quick]

Runs of 200 to 1,000 iterations with 11 layers and the kinds of noise in `detection.py`. Rates are per 10,000
iterations and layer; the target is 1. Recall: one spike of 1 to 10 iterations, 6 or 10 noise sd high, in each layer.
Fails if a rate is above 2.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._truth import add_spike, ar_noise, layer
from stabilitylab.analysis.detection.spikes import SpikeSettings, detect, shared_by

SETTINGS = SpikeSettings(ratio_open=1.0)
NOISES = [(kind, phi) for kind in ("normal", "t3") for phi in (0.0, 0.5, 0.9)]
LAYERS, SD = 11, 0.15


def run(seed: int, n: int, kind: str, phi: float, height: float = 0.0) -> tuple[list[np.ndarray], list[int]]:
    rng = np.random.default_rng([5, seed, n])
    logs, onsets = [], []
    for _ in range(LAYERS):
        x = ar_noise(rng, n, kind=kind, phi=phi)
        onsets.append(int(rng.integers(80, n - 30)))
        if height:
            add_spike(x, onsets[-1], height, int(rng.integers(1, 11)))
        logs.append(SD * x)
    return logs, onsets


def found(logs: list[np.ndarray], *, share: bool) -> list[list[int]]:
    layers = [layer(x) for x in logs]
    shared = shared_by(layers, SETTINGS) if share else None
    return [[spike.onset for spike in detect(one, SETTINGS, shared).spikes] for one in layers]


def table(runs: int) -> bool:
    heads = "".join(f"{head:>16}" for head in ("rate", "rate, z = 6", "recall 6 / 10", "z = 6: 6 / 10"))
    print(f"{'iterations':>10}  {'noise':<8}{'phi':>5}{heads}")
    kept = True
    for n in (200, 400, 600, 1000):
        for kind, phi in NOISES:
            cells = []
            for share in (True, False):
                events = sum(sum(map(len, found(run(s, n, kind, phi)[0], share=share))) for s in range(runs))
                cells.append(10_000 * events / (runs * LAYERS * n))
            recalls = []
            for share in (True, False):
                for height in (6.0, 10.0):
                    hits = []
                    for s in range(max(runs // 3, 5)):
                        logs, onsets = run(s, n, kind, phi, height)
                        for own, onset in zip(found(logs, share=share), onsets, strict=True):
                            hits.append(any(abs(onset - at) <= 3 for at in own))
                    recalls.append(float(np.mean(hits)))
            a, b, c, d = recalls
            pairs = f"{f'{a:.2f} / {b:.2f}':>16}{f'{c:.2f} / {d:.2f}':>16}"
            print(f"{n:>10}  {kind:<8}{phi:>5}{cells[0]:>16.2f}{cells[1]:>16.2f}{pairs}", flush=True)
            kept &= cells[0] <= 2
    return kept


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="15 runs a row, not 60; the limit is not checked")
    parser.add_argument("--runs", type=int, default=60, help="how many, in each row")
    given = parser.parse_args()
    quick = given.quick
    if not (table(15 if quick else given.runs) or quick):
        raise SystemExit("a limit is not kept")
