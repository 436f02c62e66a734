"""Stability of results: how many events reported after n iterations are still reported after 2n?

    python benchmarks/survival.py [--quick] [--real DIR]

Eleven layers of synthetic noise with planted spikes, cut at 400 to 6,400 iterations and at twice that length.
"settled" excludes events within 200 iterations of the end, which `stablab watch` marks as provisional; "told later"
counts settled events of the longer run that were not reported in the shorter one. --real: a folder of runs as Parquet
(layers and layer_stats). Fails if less than 95% of the settled events survive, from 1,600 iterations on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import duckdb
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._truth import add_spike, ar_noise, layer
from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.spikes import detect, shared_by
from stabilitylab.analysis.series import LayerSeries

SETTINGS = SpikeSettings()
PROVISIONAL = SETTINGS.window


def generated(seed: int, n: int, kind: str, phi: float) -> list[LayerSeries]:
    """Layers with a spike every 300 iterations, 3 to 12 noise sd high; all but the smallest double the norm."""
    rng = np.random.default_rng([6, seed])
    layers = []
    for depth in range(11):
        x = ar_noise(rng, n, kind=kind, phi=phi)
        for onset in range(150, n - 60, 300):
            add_spike(x, onset + int(rng.integers(0, 100)), rng.uniform(3, 12), int(rng.integers(1, 16)))
        layers.append(layer(0.2 * x, f"l{depth}", depth))
    return layers


def real(folder: Path) -> list[LayerSeries]:
    con = duckdb.connect()
    rows = con.execute(f"SELECT layer_id, name, depth FROM '{folder}/layers.parquet' WHERE trainable").fetchall()
    layers = []
    for layer_id, name, depth in rows:
        found = con.execute(
            f"SELECT iteration::BIGINT AS i, grad_norm::DOUBLE AS g FROM '{folder}/layer_stats.parquet' "
            "WHERE layer_id = ? AND grad_norm IS NOT NULL ORDER BY iteration",
            [layer_id],
        ).fetchnumpy()
        layers.append(LayerSeries(name, depth, np.asarray(found["i"]), np.asarray(found["g"])))
    return layers


Told = tuple[list[tuple[str, int, int]], dict[str, float]]


def told(layers: list[LayerSeries], n: int) -> Told:
    """Layer, onset and end of each event of the first ``n`` values, and each layer's threshold in noise sd."""
    cut = [LayerSeries(one.name, one.depth, one.iteration[:n], one.grad_norm[:n]) for one in layers]
    shared = shared_by(cut, SETTINGS)
    found = {one.name: detect(one, SETTINGS, shared) for one in cut}
    events = [(s.layer, s.onset, s.end) for one in found.values() for s in one.spikes]
    return events, {name: one.threshold for name, one in found.items()}


def row(name: str, runs: list[list[LayerSeries]], n: int) -> bool:
    all_of, kept, settled, settled_kept, later = 0, 0, 0, 0, 0
    moved: list[float] = []  # of every layer, and below of the layers of events that are lost
    lost: list[float] = []
    for layers in runs:
        after, then = told(layers, 2 * n)
        before, now = told(layers, n)
        later += sum(onset < n - PROVISIONAL for _, onset, _ in after)
        moved += [abs(then[one] - now[one]) for one in now]
        for which, onset, end in before:
            there = any(which == w and onset <= e and o <= end for w, o, e in after)
            all_of, kept = all_of + 1, kept + there
            if end <= n - PROVISIONAL:
                settled, settled_kept = settled + 1, settled_kept + there
                lost += [] if there else [then[which] - now[which]]
    share = settled_kept / settled if settled else float("nan")
    every = kept / all_of if all_of else float("nan")
    by = f"{np.nanmedian(moved):.2f}"
    rose = f"{np.nanmedian(lost):+.2f}" if lost else ""
    told_later = later - settled_kept
    print(f"{name:<22}{n:>7}{all_of:>8}{every:>10.3f}{settled:>9}{share:>10.3f}", end="")
    print(f"{told_later:>12}{by:>8}{rose:>11}", flush=True)
    return n < 1600 or settled == 0 or share >= 0.95


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 run a row, not 10; the limit is not checked")
    parser.add_argument("--real", type=Path, help="a folder of runs as Parquet")
    parser.add_argument("--runs", type=int, default=10, help="of generated noise, in each row")
    given = parser.parse_args()
    head = f"{'series':<22}{'n':>7}{'events':>8}{'survive':>10}{'settled':>9}{'survive':>10}{'told later':>12}"
    print(f"{head}{'moved':>8}{'where lost':>11}")
    held = True
    for kind, phi in (("normal", 0.5), ("t3", 0.5)):
        made = [generated(seed, 12_800, kind, phi) for seed in range(1 if given.quick else given.runs)]
        for length in (400, 800, 1600, 3200, 6400):
            held &= row(f"{kind}, AR {phi}", made, length)
    for folder in sorted(given.real.iterdir()) if given.real else []:
        if (folder / "layers.parquet").exists():
            layers = real(folder)
            for length in (500, 1000, 2000, 4000, 8000):
                if 2 * length <= max(len(one.iteration) for one in layers):
                    row(folder.name, [layers], length)
    if not (held or given.quick):
        raise SystemExit("less than 95% survive")
