"""Error rates of sequential studies: looks at 5, 10, 15 and 20 seeds with intervals of 99.83%, 99.33%, 98.5% and 97.33%
(`look_levels`), compared with 95% intervals at every look and with 20 seeds at a single look.

    python benchmarks/sequential.py [--studies 4000]

Differences are in units of the smallest effect of interest; their standard deviation over seeds is 1 or 2 units. The
true effect is 0, 0.5, 1 or 2. Errors: ``higher`` is reproduced although there is no effect, or contradicted although
the effect is at least 1; ``equal`` is reproduced although the effect is at least 1, or contradicted although there is
none. For shares, the limit is 0.2.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable

import numpy as np

from stabilitylab.comparison.decisions import decide, decide_in_turn, decide_share

LOOKS = (5, 10, 15, 20)
SPREADS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails (t, 3 df)": lambda rng, shape: rng.standard_t(3, size=shape) / np.sqrt(3),
    "skewed (log-normal)": lambda rng, shape: (rng.lognormal(0, 0.8, size=shape) - np.exp(0.32)) / 1.31,
}


def every_look(values: np.ndarray, direction: str) -> tuple[str, int]:
    """95% intervals at every look, without correction."""
    for look in LOOKS:
        verdict = decide(values[:look], direction, 1.0).verdict
        if verdict != "inconclusive":
            break
    return verdict, look


def in_turn(values: np.ndarray, direction: str) -> tuple[str, int]:
    decision, used = decide_in_turn(values, LOOKS, direction, 1.0)
    return decision.verdict, used


def at_once(values: np.ndarray, direction: str) -> tuple[str, int]:
    return decide(values, direction, 1.0).verdict, len(values)


def shares(studies: int, rng: np.random.Generator) -> None:
    print("| true share | lower than 0.2: reproduced | contradicted | inconclusive | seeds |")
    print("|---|---|---|---|---|")
    for share in (0.0, 0.05, 0.2, 0.5, 0.9):
        draws = (rng.random((studies, LOOKS[-1])) < share).astype(float)
        found = [decide_in_turn(x, LOOKS, "lower", 0.2, share=True) for x in draws]
        counts = Counter(decision.verdict for decision, _ in found)
        cells = [f"{100 * counts[v] / studies:.1f}%" for v in ("reproduced", "contradicted", "inconclusive")]
        print(f"| {share:g} | {' | '.join(cells)} | {np.mean([used for _, used in found]):.1f} |")
    print(f"(0 of 20 at once: {decide_share(np.zeros(20), 'lower', 0.2).interval})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=4000)
    studies = parser.parse_args().studies
    rng = np.random.default_rng(0)
    print("| direction | differences | spread | truth | rule | reproduced | contradicted | inconclusive | seeds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for direction in ("higher", "equal"):
        for name, draw in SPREADS.items():
            for spread in (1.0, 2.0):
                noise = spread * draw(rng, (studies, LOOKS[-1]))
                for truth in (0.0, 0.5, 1.0, 2.0):
                    for rule in (in_turn, every_look, at_once):
                        found = [rule(truth + x, direction) for x in noise]
                        counts = Counter(verdict for verdict, _ in found)
                        cells = [
                            f"{100 * counts[v] / studies:.1f}%" for v in ("reproduced", "contradicted", "inconclusive")
                        ]
                        seeds = f"{np.mean([used for _, used in found]):.1f}"
                        what = [direction, name, f"{spread:g}", f"{truth:g}", rule.__name__.replace("_", " ")]
                        print(f"| {' | '.join([*what, *cells, seeds])} |")
    print()
    shares(studies, rng)


if __name__ == "__main__":
    main()
