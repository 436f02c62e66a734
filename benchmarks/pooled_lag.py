"""Pooled lag: type I error and coverage for 3 to 20 runs with 1 to 5 matches each.

    python benchmarks/pooled_lag.py [--quick]

Runs of 1,200 iterations. Related: 1 to 5 spikes reach the last layer after a planted lag of 0 to 40 with a jitter of
sd 0 to 4, plus a deviation of sd 0 to 2 common to the spikes of a run; each layer also has as many unrelated spikes.
Unrelated: the same number of spikes at random positions. Fails if intervals cover the truth in less than 93%, or if
unrelated layers have p < 0.05 or a claimed direction in more than 6.5%.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.comparison.pooled import PooledLag, RunOnsets, pool_lag

N = 1200
RUNS, MATCHES = (3, 5, 6, 10, 20), (1, 2, 3, 5)
COVERED, BY_CHANCE = 0.93, 0.065


def drawn(rng: np.random.Generator, runs: int, matches: int, *, related: bool) -> tuple[PooledLag, int]:
    lag, jitter, between = int(rng.integers(0, 41)), rng.uniform(0, 4), rng.uniform(0, 2)
    made = []
    for _ in range(runs):
        first = rng.integers(100, N - 100, matches)
        late = first + lag + np.rint(rng.normal(0, between) + rng.normal(0, jitter, matches)).astype(int)
        own = [rng.integers(100, N - 100, matches) for _ in range(2)]
        a = np.unique(np.concatenate([first, own[0]]))
        b = np.unique(np.concatenate([late if related else rng.integers(100, N - 100, matches), own[1]]))
        made.append(RunOnsets(a, b, N))
    return pool_lag(made, group="g", source="first", target="last"), lag


def table(draws: int) -> bool:
    print(f"{draws} pools a row")
    head = f"{'runs':>5}{'matches':>9}{'given':>8}{'covers':>8}{'width':>7}{'p < 0.05':>10}"
    print(f"{head}{'chance p < 0.05':>17}{'direction':>11}")
    kept = True
    for runs in RUNS:
        for matches in MATCHES:
            rng = np.random.default_rng([17, runs, matches])
            found = [drawn(rng, runs, matches, related=True) for _ in range(draws)]
            # A lag is reported only if there are more matches than by chance; otherwise the verdict is inconclusive.
            told = [(x.ci95, lag) for x, lag in found if x.ci95 and x.p_value is not None and x.p_value < 0.05]
            given = np.mean([x.ci95 is not None for x, _ in found])
            covers = np.mean([low <= lag <= high for (low, high), lag in told]) if told else np.nan
            width = np.median([high - low for (low, high), _ in told]) if told else np.nan
            sure = len(told) / draws
            chance = [drawn(rng, runs, matches, related=False)[0] for _ in range(draws)]
            wrong = np.mean([x.p_value is not None and x.p_value < 0.05 for x in chance])
            leads = np.mean([x.verdict.endswith("leads") for x in chance])
            print(
                f"{runs:>5}{matches:>9}{given:>8.2f}{covers:>8.3f}{width:>7.1f}{sure:>10.2f}{wrong:>17.3f}{leads:>11.3f}",
                flush=True,
            )
            kept &= (not told or bool(covers >= COVERED)) and max(wrong, leads) <= BY_CHANCE
    return kept


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 pools a row, not 400; the limits are not checked")
    parser.add_argument("--pools", type=int, default=400, help="how many, in each row")
    given = parser.parse_args()
    quick = given.quick
    if not (table(40 if quick else given.pools) or quick):
        raise SystemExit("a limit is not kept")
