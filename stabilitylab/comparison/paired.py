"""Few pairs of runs: interval and p-value of their mean difference, with no more certainty than they hold."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student_t

EXACT_UP_TO = 14
NUM_SIGN_FLIPS = 20_000
MIN_PAIRS_FOR_P = 6
"""With n pairs the smallest two-sided sign-flip p is 2 / 2^n: below 0.05 from n = 6 on."""


def mean_interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean (n,). None below two pairs, or where they do not vary.

    A percentile bootstrap of n = 3 covers 75%, of n = 5 84% (normal differences): too little.
    """
    n = len(differences)
    if n < 2:
        return None
    spread = float(differences.std(ddof=1))
    if spread <= 1e-12 * float(np.abs(differences).max()):
        return None
    half = float(student_t.ppf(0.5 + level / 2, n - 1)) * spread / np.sqrt(n)
    mean = float(differences.mean())
    return mean - half, mean + half


def sign_flip_p(differences: np.ndarray, seed: int = 0) -> float | None:
    """Two-sided p of the mean under sign flips: all 2^n of them to n = 14, then 20,000 at random."""
    n = len(differences)
    if n == 0:
        return None
    observed = abs(float(differences.mean()))
    if n <= EXACT_UP_TO:
        signs = np.array(list(product((-1.0, 1.0), repeat=n)))
        extra = 0
    else:
        signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(NUM_SIGN_FLIPS, n))
        extra = 1
    reached = int((np.abs(signs @ differences) / n >= observed * (1 - 1e-12)).sum())
    return (reached + extra) / (len(signs) + extra)


def holm(p_values: list[float | None]) -> list[float | None]:
    """Holm's step-down correction over the p-values there are, in the order given."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[i] = largest
    return corrected


POWER = 0.8
NORMAL_SUM = 2.8016
"""The normal quantiles of 0.975 and 0.8, added."""
MOST_SEEDS = 1000


def power(n: int, effect_size: float, level: float = 0.95) -> float:
    """Probability that the interval of n pairs leaves 0 out, where the true mean is ``effect_size`` sd of their
    differences (normal)."""
    if n < 2:
        return 0.0
    limit = student_t.ppf(0.5 + level / 2, n - 1)
    shift = abs(effect_size) * np.sqrt(n)
    # scipy's lower tail of the noncentral t underflows to NaN far out, where it is 0.
    return float(nct.sf(limit, n - 1, shift) + np.nan_to_num(nct.cdf(-limit, n - 1, shift)))


def seeds_needed(effect_size: float) -> int | None:
    """The fewest pairs whose power is 0.8; None above 1,000: no study of this kind."""
    if abs(effect_size) * np.sqrt(MOST_SEEDS) < NORMAL_SUM:
        return None
    n = max(int((NORMAL_SUM / effect_size) ** 2), 2)  # what the normal distribution asks for; Student's needs some more
    while power(n, effect_size) < POWER:
        n += 1
    return n if n <= MOST_SEEDS else None


@cache
def detectable_size(n: int, wanted: float = POWER) -> float | None:
    """The least effect size that n pairs show with probability ``wanted``. None below two pairs."""
    return float(brentq(lambda size: power(n, size) - wanted, 1e-3, 100.0, xtol=1e-4)) if n >= 2 else None
