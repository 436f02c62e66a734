"""Comparison of mitigations: error rate for identical groups, coverage of intervals, number of seeds needed.

    python benchmarks/compare.py [--quick]

Simulates the final kNN of runs paired by seed: an effect of the seed shared by both runs plus independent noise, which
is normal, heavy-tailed (t3) or skewed (log-normal). Uses the public function compare_runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.comparison.effects import compare_runs
from stabilitylab.comparison.paired import power, seeds_needed
from stabilitylab.comparison.results import Effect, RunSummary

SEEDS = (3, 5, 10)
NOISES = ("normal", "t3", "skewed")
SD = 0.01


def noise(rng: np.random.Generator, kind: str, n: int) -> np.ndarray:
    """Unit variance, mean 0."""
    if kind == "normal":
        return rng.standard_normal(n)
    if kind == "t3":
        return rng.standard_t(3, n) / np.sqrt(3)
    drawn = rng.lognormal(0, 0.8, n)
    return (drawn - np.exp(0.32)) / np.sqrt((np.exp(0.64) - 1) * np.exp(0.64))


def groups(seed: int, kind: str, n: int, effect: float, mitigations: int = 1) -> list[Effect]:
    rng = np.random.default_rng([6, seed, n])
    shared = 0.02 * rng.standard_normal(n)
    runs = []
    for number in range(mitigations + 1):
        name = "none" if number == 0 else f"m{number}"
        knn = 0.7 + shared + SD * noise(rng, kind, n) + (effect if number else 0.0)
        runs += [RunSummary(f"{name}_{s}", name, s, 0.1, k, None, None, None, None, False) for s, k in enumerate(knn)]
    return [e for e in compare_runs(runs).effects if e.metric == "final_knn"]


def main(runs: int, *, check: bool) -> None:
    kept = True
    print(f"identical groups and a true effect of {SD:g}, {runs} comparisons a row (limits 0.065 and 0.93)")
    print(
        f"{'noise':<8}{'seeds':>6}{'verdict wrong':>15}{'p < 0.05':>10}{'covers':>8}{'covers effect':>15}  table says"
    )
    for kind in NOISES:
        for n in SEEDS:
            same = [groups(seed, kind, n, 0.0)[0] for seed in range(runs)]
            other = [groups(seed, kind, n, SD)[0] for seed in range(runs)]
            wrong = np.mean([e.verdict in ("better", "worse") for e in same])
            small = np.mean([e.p_value is not None and e.p_value < 0.05 for e in same])
            covers = np.mean([e.ci95 is not None and e.ci95[0] <= 0 <= e.ci95[1] for e in same])
            covers_effect = np.mean([e.ci95 is not None and e.ci95[0] <= SD <= e.ci95[1] for e in other])
            kept &= bool(max(wrong, small) <= 0.065 and min(covers, covers_effect) >= 0.93)
            said = same[0].warning
            print(f"{kind:<8}{n:>6}{wrong:>15.3f}{small:>10.3f}{covers:>8.3f}{covers_effect:>15.3f}  {said}")
    families = [groups(seed, "normal", 10, 0.0, mitigations=4) for seed in range(runs)]
    any_small = np.mean([any(e.p_holm is not None and e.p_holm < 0.05 for e in effects) for effects in families])
    kept &= bool(any_small <= 0.065)
    print(f"four identical mitigations at once, 10 seeds: any p below 0.05 after Holm in {any_small:.3f}\n")
    print("power: share of comparisons with a verdict, formula / counted, by effect in sd of the pairs' differences")
    counts = (3, 4, 5, 6, 8, 10, 15, 20)
    print(f"{'effect':>7}" + "".join(f"{f'n = {n}':>14}" for n in counts) + f"{'seeds for 0.8':>15}")
    for size in (0.5, 1.0, 1.5, 2.0, 3.0):
        cells = []
        for n in counts:
            found = [
                groups(seed, "normal", n, size * SD * np.sqrt(2))[0].verdict == "better" for seed in range(runs // 10)
            ]
            cells.append(f"{power(n, size):.2f} / {np.mean(found):.2f}")
        print(f"{size:>7g}" + "".join(f"{cell:>14}" for cell in cells) + f"{seeds_needed(size) or '> 1000':>15}")
    if check and not kept:
        raise SystemExit("a limit is not kept")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the comparisons; the limits are not checked")
    quick = parser.parse_args().quick
    main(300 if quick else 3000, check=not quick)
