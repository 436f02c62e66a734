"""Draw a study in one small figure: one dot per run."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stabilitylab.errors import ConfigError
from stabilitylab.report.writing import write_atomically

_COLOURS = ("#8c2d04", "#2166ac", "#1b7837", "#762a83", "#b8860b", "#555555")
_KNN = (("final_knn", "final kNN top-1 (%)", 100), ("max_dip_depth", "deepest dip (points)", 100))
_SPIKES = ("excess_first_layer", "spikes of the first layer\nbeyond those by chance", 1)
_OTHER = (("final", "final value of the judged metric", 1), ("max_dip_depth", "deepest dip or rise", 1))


def draw_overview(rows: Sequence[Mapping[str, Any]], title: str, output: Path) -> None:
    """Draw final accuracy and deepest dip of each run; if no run has a dip, the spikes of the first layer beyond those
    expected by chance, unless there are none either. The x axis is the first key that varies besides seed and
    mitigation; the colour is the mitigation; a bar marks the mean over seeds. ``output`` is a .png or .svg. Raises
    ConfigError if it cannot be written."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    mitigations = list(dict.fromkeys(row["mitigation"] for row in rows))
    keys = [k for k in rows[0] if "." in k and k != "train.seed" and len({row[k] for row in rows}) > 1]
    across = keys[0] if keys else "mitigation"
    levels = sorted({row[across] for row in rows}, key=_order) if keys else mitigations
    colours = mitigations if keys else [""]
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    figure.suptitle(title, fontsize=9)
    panels: tuple[tuple[str, str, int], ...]
    panels = _KNN if any(row.get("final_knn") not in ("", None) for row in rows) else _OTHER
    if not any(_number(row, "max_dip_depth") for row in rows):
        panels = (panels[0], _SPIKES) if any(_number(row, _SPIKES[0]) > 0 for row in rows) else panels[:1]
    drawn_in = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (metric, label, factor) in zip(drawn_in, panels, strict=True):
        for index, mitigation in enumerate(colours):
            colour = _COLOURS[index % len(_COLOURS)]
            shift = (index - (len(colours) - 1) / 2) * 0.6 / len(colours)
            for position, level in enumerate(levels):
                group = [r for r in rows if r[across] == level and mitigation in ("", r["mitigation"])]
                values = [factor * float(r[metric]) for r in group if r[metric] not in ("", None)]
                if not values:
                    continue
                axes.plot([position + shift] * len(values), values, "o", color=colour, ms=3.5, alpha=0.6, mew=0)
                mean, x = sum(values) / len(values), position + shift
                axes.plot(
                    [x - 0.09, x + 0.09], [mean, mean], color=colour, lw=1.6, label=None if position else mitigation
                )
        axes.set_xticks(range(len(levels)), levels, fontsize=7)
        if len(levels) > 4:
            axes.tick_params(axis="x", labelrotation=30)
            for tick in axes.get_xticklabels():
                tick.set(ha="right", rotation_mode="anchor")
        axes.set_xlabel(across, fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(axis="y", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        if len(colours) > 1 and metric == panels[0][0]:
            axes.legend(frameon=False, fontsize=7)
    drawn, form = io.BytesIO(), output.suffix[1:].lower()
    try:
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):  # keep text as text; reproducible output
            figure.savefig(drawn, format=form, dpi=110, metadata={"Date": None} if form == "svg" else None)
        write_atomically(output, drawn.getvalue())
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from None


def _number(row: Mapping[str, Any], key: str) -> float:
    """The value; 0 if there is none."""
    return float(row.get(key) or 0)


def _order(value: Any) -> tuple[int, float, str]:
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, str(value)
