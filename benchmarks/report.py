"""The report of a long run of a deep model: file size, build time, and time until Chromium responds.

    python benchmarks/report.py [--quick]

100,000 iterations of 150 layers with spikes planted in every layer. The build time is compared with one rolling median
over the same series in the same process, so that the ratio is comparable across machines. In Chromium (without
network), the first chart counts as ready when it can be zoomed; the page is complete when the last chart is drawn.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import median_filter

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.analysis.results import EvalCurve, FalseAlarms, LayerSeries, RunAnalysis, RunSeries, Spike
from stabilitylab.report.html.page import render_report
from stabilitylab.run.analysed import AnalysedRun
from tests.report.browser import CHROMIUM, Browser
from tests.report.pages import planted_episodes
from tests.synthetic import PlantedRun, noise, plant

MEBIBYTE = 2**20


def long_run(iterations: int, layers: int) -> AnalysedRun:
    """Noise with a spike every 1,000 iterations, which reaches the next layer 1 iteration later. Spikes are given, not
    detected: analysis.py measures the analysis."""
    names = ["patch_embed", *(f"blocks.{n}" for n in range(layers - 2)), "predictor"]
    series, onsets = [], {}
    x = noise(iterations, seed=0, phi=0.5)
    for depth, name in enumerate(names):
        onsets[name] = list(range(500 + depth, iterations - layers, 1000))
        shifted = np.roll(x, 997 * depth)
        grad_norm = np.exp(plant(shifted, onsets[name], 2.5, 3))
        series.append(LayerSeries(name, depth, np.arange(iterations), grad_norm))
    at = np.arange(0, iterations, 20)
    curve = EvalCurve(at, 0.8 - 0.5 * np.exp(-at / (0.2 * iterations)), np.full(len(at), 1000))
    run = RunSeries("long", iterations, tuple(series), {"knn_top1": curve})
    spikes = [Spike(name, o, o + 1, o + 2, 12.0, 10.0) for name in names for o in onsets[name]]
    analysis = RunAnalysis(
        run="long",
        iterations=iterations,
        layers=tuple((layer.name, layer.depth) for layer in series),
        spikes=tuple(sorted(spikes, key=lambda s: s.onset)),
        false_alarms=FalseAlarms(0, 0.0),
        episodes=planted_episodes(PlantedRun(run, onsets)),
        dips=(),
    )
    loss = (np.arange(iterations), 5 * np.exp(noise(iterations, seed=1)))
    return AnalysedRun(run, analysis, {"train": {"seed": 0}}, "finished", "", loss, {}, ())


def main(iterations: int, layers: int) -> None:
    run = long_run(iterations, layers)
    started = time.perf_counter()
    page = render_report([run], None)
    build = time.perf_counter() - started
    started = time.perf_counter()
    median_filter(run.series.layers[0].grad_norm, size=201)
    median = layers * (time.perf_counter() - started)
    spikes = len(run.analysis.spikes or ())
    print(
        f"{iterations:,} iterations x {layers} layers, {spikes:,} spikes, {len(run.analysis.episodes or ())} episodes"
    )
    print(f"file       {len(page.encode()) / MEBIBYTE:.2f} MiB")
    print(f"build      {build:.2f} s, {build / median:.2f} times one rolling median a layer")
    if CHROMIUM is None:
        print("no Chromium here: the page was not opened")
    else:
        with tempfile.TemporaryDirectory() as folder, Browser(Path(folder) / "profile") as browser:
            file = Path(folder) / "long.html"
            file.write_text(page, encoding="utf-8")
            browser.open(file)  # warm up the browser
            browser.open(file)
            first, last = (
                browser.value(f"performance.getEntriesByName('{mark}')[0].startTime / 1000")
                for mark in ("first", "drawn")
            )
            nodes = browser.value("document.querySelectorAll('*').length")
            assert browser.faults == [], browser.faults
        print(f"Chromium   first chart {first:.2f} s after navigation, all charts {last:.2f} s, {nodes:,} nodes")
    if len(page.encode()) > 6 * MEBIBYTE:
        raise SystemExit("the page is larger than 6 MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the iterations and layers")
    quick = parser.parse_args().quick
    main(10_000 if quick else 100_000, 15 if quick else 150)
