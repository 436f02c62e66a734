"""The report section "What caused it": the experiments made on a run and suggested next commands."""

from __future__ import annotations

import base64
from typing import Any

from stabilitylab.run.analysed import AnalysedRun

TITLES = {
    "impulse": "Impulse: one layer kicked once",
    "swap": "Swap: its batches or its state",
    "blame": "Blame: the images of a batch",
    "sharpness": "Sharpness: curvature against the edge of stability",
}
MOST = 12
"""Maximum number of experiments shown per run; the latest are shown."""


def caused(run: AnalysedRun) -> dict[str, Any] | None:
    """The section of a run; None if there are neither experiments nor suggested commands."""
    if not run.experiments and not run.next_experiments:
        return None
    shown = list(run.experiments)[-MOST:]
    own = [command for experiment in shown for command in experiment.next]
    return {
        "experiments": [
            {
                "title": TITLES.get(experiment.kind, experiment.kind),
                "sentence": experiment.sentence,
                "check": experiment.results.get("replay_check") or "",
                "picture": _inline(experiment.picture.read_bytes()) if experiment.picture else "",
            }
            for experiment in shown
        ],
        "more": len(run.experiments) - len(shown),
        "next": list(dict.fromkeys([*own, *run.next_experiments])),
    }


def _inline(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()
