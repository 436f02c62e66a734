"""How each number of a report is defined, in the words of the README."""

from __future__ import annotations

DEFINITIONS = (
    ("iteration", "Optimizer updates made before this one, from 0."),
    ("gradient norm", "L2 norm of a layer's gradient, before any clipping and after AMP unscaling."),
    (
        "spike",
        "The logarithm of the gradient norm rises above the higher of two medians, that of the last 200 values that "
        "are no spike and that of the next 200, by more noise than chance brings, and the norm is at least twice the "
        "former. One value, or 2, 4 or 8 in a row, must pass thresholds fitted to the series' own downward excursions, "
        "so that noise alone raises at most one event per 10,000 iterations and layer. It begins at half its height "
        "and ends below 3 noise sd; gaps of up to 3 iterations are bridged.",
    ),
    ("chance", "The same detector on the mirrored series, whose spikes are downward: what noise alone would flag."),
    (
        "episode",
        "Spikes of several layers that lie so close that chance would rarely bring them together. The layer whose "
        "spike opens it leads; its reach is the share of trained layers that take part.",
    ),
    (
        "lag",
        "Iterations from a spike in the first trained layer to the matching one in another, at most 100 apart on "
        "either side: matched one to one, around the lag that most pairs share. Median with the order-statistic 95% "
        "interval. The p-value compares how many match with circular shifts. Under 5 matches: inconclusive.",
    ),
    (
        "dip",
        "A stretch in which the judged metric is worse than the level it had reached (a loss: higher) by at least 4 of "
        "its standard errors and 1 point, or 1% of the range of a metric that is not a share; one or several "
        "evaluations judged together. The standard error is binomial where the number of samples is known, else the "
        "curve's own noise. Area: depth times iterations.",
    ),
    ("kNN top-1", "Weighted kNN (k = 20, T = 0.07) of the base encoder's features on held-out images."),
    (
        "effect",
        "Mitigation minus baseline over runs with the same seed and learning rate. 95% t interval, sign-flip "
        "permutation p, Holm's correction over the mitigations.",
    ),
)


def definitions(metric: str) -> tuple[tuple[str, str], ...]:
    """Those that a report of runs judged by ``metric`` needs."""
    return tuple(row for row in DEFINITIONS if row[0] != "kNN top-1" or metric == "knn_top1")
