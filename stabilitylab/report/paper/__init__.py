"""Figures and tables for papers: what there is. Imports no matplotlib."""

FIGURES = {
    "knn": "the judged metric of each run or group",
    "spikes": "gradient norms with spikes",
    "lag": "lag by layer",
    "heatmap": "all layers over iterations",
    "compare": "runs compared",
    "lr-sensitivity": "the final value by learning rate",
}
"""kind -> what it shows."""

FORMATS = ("pdf", "svg", "png")
WIDTHS = {"single": 3.25, "double": 6.75}
"""Inches: one and two columns of the usual conference sheet."""
