"""Lags of imported logs that record every k-th iteration or means of k, with a known lag.

    python benchmarks/sparse_lag.py [DIR] [--lag 6]

DIR contains CSV files (iteration,layer,grad_norm). Without it, eight are written to a temporary folder: five layers, 80
spikes that decay over 40 iterations and reach the layers after 0, 1, 3, 4 and 6 iterations, each layer recorded at
every 1st, 10th, 25th and 50th iteration, as single values and as means. Each is imported without options and analysed.
Fails unless each interval covers the lag, and an order is claimed only if the lag exceeds the step.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.importers.registry import import_log
from stabilitylab.run.answers import answer_run

N, DELAYS, STEPS = 40_000, (0, 1, 3, 4, 6), (1, 10, 25, 50)
LAYERS = ("patch_embed", "blocks.0", "blocks.1", "blocks.2", "norm")


def write(folder: Path, seed: int = 3) -> None:
    rng = np.random.default_rng(seed)
    onsets = np.sort(rng.choice(np.arange(600, N - 600, 400), 80, replace=False) + rng.integers(0, 300, 80))
    norms = {}
    for layer, delay in zip(LAYERS, DELAYS, strict=True):
        norm = np.exp(rng.normal(0, 0.12, N))
        for onset in onsets + delay:
            width = min(160, N - onset)
            norm[onset : onset + width] *= 1 + 7 * np.exp(-np.arange(width) / 40)
        norms[layer] = norm
    for step in STEPS:
        at = np.arange(0, N - step, step)
        for kind in ("every", "mean"):
            parts = [
                pd.DataFrame(
                    {
                        "iteration": at,
                        "layer": name,
                        "grad_norm": norm[at]
                        if kind == "every"
                        else norm[: len(at) * step].reshape(-1, step).mean(axis=1),
                    }
                )
                for name, norm in norms.items()
            ]
            frame = pd.concat(parts).sort_values("iteration", kind="stable")
            frame.to_csv(folder / f"{kind}{step}.csv", index=False, float_format="%.6g")


def table(folder: Path, lag: float) -> bool:
    kept = True
    print(f"{'log':<16}{'step':>5}{'matched':>9}{'lag':>6}  {'interval':<12}{'covers':<8}verdict")
    with tempfile.TemporaryDirectory() as root:
        for path in sorted(folder.glob("*.csv")):
            for made in import_log(Path(root), path):
                found = answer_run(made.path, keep=False).analysis.lag
                assert found is not None
                if found.ci95 is None:
                    print(f"{path.stem:<16}{'':>5}{found.num_matched:>9}  {found.verdict}: {found.reason}")
                    continue
                low, high = found.ci95
                covers = low <= lag <= high
                claimed = found.verdict in ("first leads", "last leads")
                kept &= covers and (not claimed or (lag > 0) == (found.verdict == "first leads"))
                print(
                    f"{path.stem:<16}{found.resolution:>5}{found.num_matched:>9}{found.median_iterations:>6g}  "
                    f"{f'{low:g} to {high:g}':<12}{'yes' if covers else 'NO':<8}{found.verdict}",
                    flush=True,
                )
    return kept


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="the folder of CSV files")
    parser.add_argument("--lag", type=float, default=6, help="the true lag from the first layer to the last")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as written:
        if given.folder is None:
            write(Path(written))
        if not table(given.folder or Path(written), given.lag):
            raise SystemExit("an interval does not cover the lag, or an order is claimed that is wrong")
