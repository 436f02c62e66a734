"""Early warning: which recorded signals rise before the spikes of a layer, in real runs and by chance.

    python benchmarks/early_warning.py DIR [--only TEXT]

DIR contains runs with recorded signals, such as the ``unstable-...`` runs of `_trained.py`. Public reports claim that
the norm of the update rises before gradient spikes, especially in the lower layers; `update_norm` is update_ratio *
weight_norm. A spike counts as predicted if an alarm opens in its layer at most 20 iterations before it. Prints the
results of each signal for all layers and for the lower and the upper half, then the pairs of signal and layer that are
significant after Holm's correction.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.spikes import detect, shared_by
from stabilitylab.analysis.early_warning import early_warning
from stabilitylab.analysis.series import LayerSeries
from stabilitylab.analysis.timeline import Timeline
from stabilitylab.analysis.warning_table import best_warning, warning_table
from stabilitylab.run.series import load_series
from stabilitylab.store.reader import RunReader, open_run

SIGNALS = {
    "update_norm": "update_ratio * weight_norm", "update_ratio": "update_ratio", "adam_rms": "adam_rms",
    "weight_norm": "weight_norm", "attention_max": "attention_max", "attention_entropy": "1 / attention_entropy",
    "grad_cosine": "1 - grad_cosine",
}  # fmt: skip


class Stored:
    """The signals of a run in the form that `warning_table` expects."""

    names = tuple(SIGNALS)

    def __init__(self, reader: RunReader) -> None:
        self.reader = reader

    def load(self, signal: str, layers: Sequence[str]) -> list[LayerSeries]:
        found = []
        for name in layers:
            rows = self.reader.query(
                f"SELECT iteration::BIGINT AS i, ({SIGNALS[signal]})::DOUBLE AS x FROM layer_stats JOIN layers "
                f"USING (layer_id) WHERE name = ? AND ({SIGNALS[signal]}) IS NOT NULL ORDER BY iteration",
                [name],
            ).fetchnumpy()
            if len(rows["i"]):
                found.append(LayerSeries(name, 0, np.asarray(rows["i"]), np.asarray(rows["x"])))
        return found


def judge(reader: RunReader) -> None:
    layers = [layer for layer in load_series(reader).layers if layer.trainable and len(layer.iteration)]
    settings = SpikeSettings()
    shared = shared_by(layers, settings)
    spikes = sorted((s for layer in layers for s in detect(layer, settings, shared).spikes), key=lambda s: s.onset)
    lines = {layer.name: Timeline.of(layer.iteration) for layer in layers}
    source = Stored(reader)
    names = [layer.name for layer in sorted(layers, key=lambda layer: layer.depth)]
    print(f"\n{reader.name}: {len(spikes)} spikes in {len(names)} layers")
    head = f"{'signal':<16}{'layers':<20}{'spikes':>7}{'warned':>8}{'share':>7}{'chance':>8}{'p':>8}{'p Holm':>8}"
    print(f"{head}{'lead':>6}  {'interval':<12}{'false per 10k':>13}")
    n = max(int(layer.iteration[-1]) for layer in layers) + 1
    for signal in source.names:
        series = source.load(signal, names)
        half = len(names) // 2
        for which, some in (("all", names), ("lower half", names[:half]), ("upper half", names[half:])):
            own = [one for one in series if one.name in some]
            if own:
                found = early_warning(signal, own, spikes, num_iterations=n, settings=settings, timelines=lines)
                line(signal, which, found)
    table, left = warning_table(source, spikes, lines, settings)
    sure = [row for row in table if row.p_holm is not None and row.p_holm < 0.05]
    print(f"pairs of signal and layer: {len(table)}; beyond chance after correction: {len(sure)}. {left}")
    for row in sorted(sure, key=lambda row: -(row.hit_rate or 0)):
        line(row.signal, row.layer, row)
    best = best_warning(table)
    print(f"best: {best.signal} in {best.layer}" if best else "best: none holds")


def line(signal: str, which: str, found) -> None:  # type: ignore[no-untyped-def]
    if found.hit_rate is None:
        print(f"{signal:<16}{which:<20}{found.num_spikes:>7}  {found.reason}")
        return
    lead = "" if found.median_lead is None else f"{found.median_lead:g}"
    between = "" if found.lead_ci95 is None else f"{found.lead_ci95[0]:g} to {found.lead_ci95[1]:g}"
    holm = "" if found.p_holm is None else f"{found.p_holm:.3f}"
    print(
        f"{signal:<16}{which:<20}{found.num_spikes:>7}{found.num_warned:>8}{found.hit_rate:>7.2f}"
        f"{found.hit_rate_by_chance:>8.2f}{found.p_value:>8.3f}{holm:>8}{lead:>6}  {between:<12}"
        f"{found.false_per_10k:>13.1f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="unstable", help="only runs whose name contains this")
    given = parser.parse_args()
    for path in sorted(given.folder.iterdir()):
        if given.only in path.name and (path / "run.duckdb").exists():
            with open_run(path) as run:
                judge(run)
