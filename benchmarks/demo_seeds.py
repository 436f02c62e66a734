"""The demo's learned runs on ten seeds: what the report concludes from each, and from three seeds together.

    for capability in default avx2 avx512; do
        ATEN_CPU_CAPABILITY=$capability python benchmarks/demo_seeds.py DIR --seeds 10
    done
    python benchmarks/demo_seeds.py DIR --table

Trains the runs that are missing in DIR, one after the other, with the configuration and the length of `stablab demo`
and without the frozen runs: about a minute per run on one core. ``--table`` only prints: a row per seed with the
spikes of patch_embed and of all layers for each capability, the number expected by chance in parentheses, and the
verdict of the report; then every three seeds in a row, as `stablab demo --seed N` compares them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.analysis.results import RunAnalysis, chance_of
from stabilitylab.cli.demo import DEMO, DEMO_ITERATIONS, DEMO_SEEDS
from stabilitylab.report.html.instability import expected_by_chance, spikes_beyond_chance
from stabilitylab.run.loading import load_run

FIRST = "patch_embed"
CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")


def train(folder: Path, seeds: range) -> None:
    import torch

    from stabilitylab.config import resolve
    from stabilitylab.studies import train_side_by_side
    from stabilitylab.studies.restarting import is_complete

    capability = torch.backends.cpu.get_cpu_capability()
    jobs = []
    for seed in seeds:
        name = f"learned_{capability}_seed{seed}"
        if not is_complete(folder / name):
            jobs.append((name, resolve(DEMO, {"train": {"iterations": DEMO_ITERATIONS, "seed": seed}})))
    if jobs:
        train_side_by_side(jobs, folder, workers=1)


def cell(found: RunAnalysis) -> str:
    spikes = [spike for spike in found.spikes or () if spike.kind == "spike"]
    largest = max((spike.ratio for spike in spikes), default=0.0)
    rates = found.false_alarms.expected / len(found.layers) if found.false_alarms else float("nan")
    first = sum(spike.layer == FIRST for spike in spikes)
    chance = chance_of(len(spikes), expected_by_chance([found]))
    verdict = "yes" if spikes_beyond_chance([found]) else "no"
    return (
        f"{first} ({rates:.1f}) | {len(spikes)} ({expected_by_chance([found]):.1f}) | {largest:.0f}x | {chance:.0e} "
        f"| {verdict}"
    )


def table(folder: Path, seeds: range) -> None:
    for capability in CAPABILITIES:
        paths = {seed: folder / f"learned_{capability}_seed{seed}" for seed in seeds}
        runs = {seed: load_run(path) for seed, path in paths.items() if path.exists()}
        found = {seed: run.analysis for seed, run in runs.items()}
        print(f"\n{capability}\n")
        print("| seed | patch_embed | all layers | largest | p | unstable | kNN, start to end | dips |")
        print("|---|---|---|---|---|---|---|---|")
        for seed, one in found.items():
            start, end = runs[seed].series.evals["knn_top1"].value[0], runs[seed].summary.final_knn or float("nan")
            knn = f"{100 * start:.0f} to {100 * end:.0f}%"
            print(f"| {seed} | {cell(one)} | {knn} | {len(one.dips or ())} |")
        groups = [seeds[i : i + DEMO_SEEDS] for i in range(len(seeds) - DEMO_SEEDS + 1)]
        judged = [spikes_beyond_chance([found[s] for s in group]) for group in groups if all(s in found for s in group)]
        alone = sum(spikes_beyond_chance([one]) for one in found.values())
        print(f"\n{alone} of {len(found)} seeds alone, {sum(judged)} of {len(judged)} groups of {DEMO_SEEDS} in a row")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    chosen = range(given.first, given.first + given.seeds)
    if not given.table:
        given.folder.mkdir(parents=True, exist_ok=True)
        train(given.folder, chosen)
    table(given.folder, chosen)
