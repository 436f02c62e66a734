"""The definitions of the terms in a report, as in the README."""

from __future__ import annotations

DEFINITIONS = (
    ("iteration", "Number of optimizer updates before this one, starting at 0."),
    ("gradient norm", "L2 norm of a layer's gradient, before any clipping and after AMP unscaling."),
    (
        "spike",
        "The logarithm of the gradient norm exceeds the higher of two medians, that of the previous 200 values outside "
        "spikes and that of the next 200, by more than noise explains, and the norm is at least twice the former "
        "median. One value, or 2, 4 or 8 consecutive values, must exceed thresholds fitted to the downward excursions "
        "of the series, so that noise alone causes at most one event per 10,000 iterations and layer. A spike begins "
        "at half its height and ends below 3 noise sd. Events at most 3 recorded rows apart, or between which the norm "
        "did not return to its usual level, are one spike.",
    ),
    (
        "chance",
        "The same detector applied to the mirrored series, in which downward excursions are spikes: an estimate of "
        "what noise alone would flag.",
    ),
    (
        "episode",
        "Spikes of several layers that are closer together than expected by chance. The layer of the first spike "
        "leads; the reach is the share of the trained layers that are involved.",
    ),
    (
        "lag",
        "Iterations from a spike in the first trained layer to the matching spike in another layer, at most 100 "
        "iterations before or after it. Spikes are matched one to one around the most common lag. Median with the "
        "order-statistic 95% interval. The p-value compares the number of matches with circular shifts. Fewer than 5 "
        "matches are inconclusive.",
    ),
    (
        "dip",
        "A period in which the judged metric is worse than the level it had reached (for a loss: higher) by at least 4 "
        "standard errors and by at least 1 point, or 1% of the range if the metric is not a share. One or several "
        "evaluations are judged together. The standard error is binomial if the number of samples is known; otherwise "
        "it is estimated from the noise of the curve. Area: depth times iterations.",
    ),
    (
        "drift",
        "The gradient norm of a layer grows or shrinks by a factor of at least 10 over a period much longer than a "
        "spike. It is measured by the medians of up to 60 blocks of time, without a jump between adjacent blocks. If "
        "the 95% interval of its slope contains 0, it is not certain.",
    ),
    (
        "collapse",
        "The features of different images are nearly equal at the end of the run. The signs are: a spread below 0.02 "
        "of that of uniformly distributed features, an effective rank below 1.2, a loss at its chance level, and an "
        "accuracy below a quarter of its best. A sign that was not measured is not judged. A run that keeps the "
        "accuracy it gained is at most partly collapsed.",
    ),
    ("kNN top-1", "Weighted kNN (k = 20, T = 0.07) of the base encoder's features on held-out images."),
    (
        "effect",
        "Mitigation minus baseline over pairs of runs with the same seed and learning rate. 95% t interval, sign-flip "
        "permutation p-value, Holm correction over the mitigations.",
    ),
)


def definitions(metric: str) -> tuple[tuple[str, str], ...]:
    """The definitions needed in a report of runs judged by ``metric``."""
    return tuple(row for row in DEFINITIONS if row[0] != "kNN top-1" or metric == "knn_top1")
