"""Real noise: false events in healthy runs by layer and by size, and the distribution of their log norms.

    python benchmarks/real_noise.py DIR [--half fit|confirm] [--min-ratio R]

DIR contains the healthy runs of `_trained.py` (``healthy-...``), or runs exported as Parquet. In a healthy run every
event counts as false, including hard batches. The rule was chosen on the runs with even seeds ("fit"); those with odd
seeds confirm it ("confirm"). Rates are per 10,000 iterations and layer; the target is 1. p is the probability of at
least as many events at the target rate.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.survival import real
from stabilitylab.analysis.detection.baseline import baseline
from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.spikes import detect, log_norms, shared_by
from stabilitylab.analysis.events import Spike
from stabilitylab.analysis.series import LayerSeries

SKIPPED = 200
"""Iterations at the start that are not counted: the learning rate still warms up there."""
SIZES = ((1, 2), (2, 3), (3, 5), (5, float("inf")))


@dataclass(frozen=True)
class Run:
    name: str
    layers: list[LayerSeries]
    spikes: list[Spike]

    @property
    def values(self) -> int:
        return sum(len(layer.iteration) - SKIPPED for layer in self.layers)


def loaded(folder: Path) -> list[LayerSeries]:
    if (folder / "layers.parquet").exists():
        return real(folder)
    from stabilitylab.run.series import load_series
    from stabilitylab.store.reader import open_run

    with open_run(folder) as run:
        return list(load_series(run).layers)


def judged(folder: Path, settings: SpikeSettings) -> Run:
    layers = [layer for layer in loaded(folder) if layer.trainable and len(layer.iteration) > 2 * SKIPPED]
    shared = shared_by(layers, settings)
    spikes = [spike for layer in layers for spike in detect(layer, settings, shared).spikes]
    first = {layer.name: int(layer.iteration[SKIPPED]) for layer in layers}
    return Run(folder.name, layers, [spike for spike in spikes if spike.onset >= first[spike.layer]])


def rate(spikes: int, values: int) -> str:
    return f"{10_000 * spikes / max(values, 1):.2f}"


def totals(name: str, runs: Sequence[Run]) -> None:
    values = sum(run.values for run in runs)
    spikes = [spike for run in runs for spike in run.spikes]
    natures = Counter(spike.nature for spike in spikes)
    chance = float(stats.poisson.sf(len(spikes) - 1, values / 10_000))
    kinds = f"{natures['one batch']} / {natures['short']} / {natures['lasting']}"
    allowed = values / 10_000
    print(f"{name:<34}{values:>9,}{len(spikes):>8}{allowed:>9.1f}{rate(len(spikes), values):>8}{chance:>9.2g}  {kinds}")


def by_layer(runs: Sequence[Run]) -> None:
    print("\nby layer and size (ratio to the usual norm), events per 10,000 iterations")
    print(
        f"{'layer':<16}{'values':>9}" + "".join(f"{f'{low:g} to {high:g}':>12}" for low, high in SIZES) + f"{'all':>8}"
    )
    names = {layer.name: layer.depth for run in runs for layer in run.layers}
    for name in sorted(names, key=lambda one: (names[one], one)):
        values = sum(len(layer.iteration) - SKIPPED for run in runs for layer in run.layers if layer.name == name)
        own = [spike for run in runs for spike in run.spikes if spike.layer == name]
        cells = [sum(low <= spike.ratio < high for spike in own) for low, high in SIZES]
        print(
            f"{name:<16}{values:>9,}"
            + "".join(f"{rate(n, values):>12}" for n in cells)
            + f"{rate(len(own), values):>8}"
        )


def shape(runs: Sequence[Run]) -> None:
    """Print the distribution of the log norms relative to their trailing median, in noise sd, by layer."""
    print("\nlog norms about their median, in noise sd")
    print(f"{'layer':<16}{'skewness':>9}{'0.1%':>8}{'99.9%':>8}{'lowest':>8}{'highest':>8}{'AR(1)':>8}")
    names = {layer.name: layer.depth for run in runs for layer in run.layers}
    for name in sorted(names, key=lambda one: (names[one], one)):
        parts, follow = [], []
        for run in runs:
            for layer in run.layers:
                if layer.name == name:
                    x = log_norms(layer.grad_norm)[0]
                    base = baseline(x, ~np.isnan(x), window=200, warmup=50)
                    z = ((x - base.before) / base.scale)[SKIPPED:]
                    z = z[np.isfinite(z)]
                    parts.append(z)
                    follow.append(float(np.corrcoef(z[1:], z[:-1])[0, 1]))
        z = np.concatenate(parts)
        low, high = np.percentile(z, [0.1, 99.9])
        print(
            f"{name:<16}{stats.skew(z):>9.2f}{low:>8.1f}{high:>8.1f}{z.min():>8.1f}{z.max():>8.1f}{np.mean(follow):>8.2f}"
        )


def main(folder: Path, half: str, settings: SpikeSettings) -> bool:
    found = [one for one in sorted(folder.iterdir()) if one.is_dir() and one.name.startswith("healthy")]
    wanted = {"fit": (0,), "confirm": (1,), "": (0, 1)}[half]
    runs = [judged(one, settings) for one in found if int(one.name.rsplit("-", 1)[1]) % 2 in wanted]
    print(f"{'run':<34}{'values':>9}{'events':>8}{'allowed':>9}{'rate':>8}{'p':>9}  one batch / short / lasting")
    for run in runs:
        totals(run.name, [run])
    for number, name in ((0, "fit (even seeds)"), (1, "confirm (odd seeds)")):
        part = [run for run in runs if int(run.name.rsplit("-", 1)[1]) % 2 == number]
        if part:
            totals(name, part)
    totals("all", runs)
    by_layer(runs)
    shape(runs)
    spikes, values = sum(len(run.spikes) for run in runs), sum(run.values for run in runs)
    return float(stats.poisson.sf(spikes - 1, values / 10_000)) > 0.01


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--half", choices=("fit", "confirm"), default="", help="runs of even or of odd seeds alone")
    parser.add_argument("--min-ratio", type=float, default=2.0, help="1: the threshold alone")
    given = parser.parse_args()
    if not main(given.folder, given.half, SpikeSettings(ratio_open=given.min_ratio)):
        raise SystemExit("more events than chance opens at the rate asked for")
