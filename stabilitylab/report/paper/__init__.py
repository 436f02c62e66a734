"""The available figures for papers. Does not import matplotlib."""

FIGURES = {
    "knn": "the judged metric of each run or group",
    "spikes": "gradient norms with spikes",
    "lag": "lag by layer",
    "heatmap": "all layers over iterations",
    "compare": "a comparison of runs",
    "lr-sensitivity": "the final value by learning rate",
}
"""kind -> description."""

FORMATS = ("pdf", "svg", "png")
WIDTHS = {"single": 3.25, "double": 6.75}
"""Widths in inches of one and two columns in the usual conference format."""
