"""The demo's runs on ten seeds: what the report concludes from each, and from three seeds together.

    for capability in default avx2 avx512; do
        ATEN_CPU_CAPABILITY=$capability python benchmarks/demo_seeds.py DIR --seeds 10
    done
    python benchmarks/demo_seeds.py DIR --frozen
    python benchmarks/demo_seeds.py DIR --table

Trains the runs that are missing in DIR, one after the other, with the configuration and the length of `stablab demo`:
the learned ones as DIR/CAPABILITY/seedN, with ``--frozen`` the frozen ones as DIR/CAPABILITY/frozen-seedN; about a
minute per run on one core. ``--table`` only prints: for each seed and capability the spikes of patch_embed (if it is
frozen, of blocks.0) and of all layers, and the verdict of the report with its p; then how many of all choices of three
seeds, which is what `stablab demo` compares, have more spikes than expected by chance.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.analysis.results import RunAnalysis, Spike, chance_of
from stabilitylab.cli.demo import DEMO, DEMO_ITERATIONS, DEMO_SEEDS
from stabilitylab.report.html.instability import expected_by_chance, spikes_beyond_chance
from stabilitylab.run.loading import load_run

CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")


@dataclass(frozen=True)
class Arm:
    """The learned or the frozen runs. ``first``: the layer that is counted alone."""

    mitigation: tuple[str, ...]
    prefix: str
    first: str


LEARNED, FROZEN = Arm((), "seed", "patch_embed"), Arm(("frozen-patch",), "frozen-seed", "blocks.0")


def train(folder: Path, seeds: range, arm: Arm) -> None:
    import torch

    from stabilitylab.config import resolve
    from stabilitylab.studies import train_side_by_side
    from stabilitylab.studies.restarting import is_complete

    capability = torch.backends.cpu.get_cpu_capability()
    jobs = []
    for seed in seeds:
        name = f"{arm.prefix}{seed}"
        if not is_complete(folder / capability / name):
            own = {"train": {"iterations": DEMO_ITERATIONS, "seed": seed}, "mitigation": list(arm.mitigation)}
            jobs.append((name, resolve(DEMO, own)))
    if jobs:
        train_side_by_side(jobs, folder / capability, workers=1)


@dataclass(frozen=True)
class Seed:
    """The spikes of one run and those expected by chance. ``counted``: the layer that is counted alone. ``knn``: at
    the start and at the end."""

    found: RunAnalysis
    counted: str
    knn: tuple[float, float]

    @property
    def spikes(self) -> list[Spike]:
        return [spike for spike in self.found.spikes or () if spike.kind == "spike"]

    @property
    def first(self) -> int:
        return sum(spike.layer == self.counted for spike in self.spikes)

    def cells(self) -> str:
        chance = chance_of(len(self.spikes), expected_by_chance([self.found]))
        verdict = "unstable" if spikes_beyond_chance([self.found]) else "not beyond chance"
        return f"{self.first} | {len(self.spikes)} | {verdict}, p = {chance:.1g}"


def load(folder: Path, seeds: range, arm: Arm) -> dict[int, Seed]:
    found = {}
    for seed in seeds:
        if (folder / f"{arm.prefix}{seed}").exists():
            run = load_run(folder / f"{arm.prefix}{seed}")
            end = run.summary.final_knn
            knn = (run.series.evals["knn_top1"].value[0], float("nan") if end is None else end)
            found[seed] = Seed(run.analysis, arm.first, knn)
    return found


def table(folder: Path, seeds: range, arm: Arm) -> None:
    runs = {capability: load(folder / capability, seeds, arm) for capability in CAPABILITIES}
    runs = {capability: found for capability, found in runs.items() if found}
    heads = [f"{capability}: {arm.first} | all | verdict" for capability in runs]
    print("| seed | " + " | ".join(heads) + " |")
    print("|---" * (1 + 3 * len(runs)) + "|")
    for seed in seeds:
        cells = [found[seed].cells() if seed in found else " | | " for found in runs.values()]
        print(f"| {seed} | " + " | ".join(cells) + " |")
    for capability, found in runs.items():
        summarise(capability, found, arm)


def summarise(capability: str, found: dict[int, Seed], arm: Arm) -> None:
    analyses = [one.found for one in found.values()]
    alone = sum(spikes_beyond_chance([one]) for one in analyses)
    groups = list(combinations(analyses, DEMO_SEEDS))
    together = sum(map(spikes_beyond_chance, groups))
    first = sum(one.first for one in found.values())
    spikes = [spike for one in found.values() for spike in one.spikes]
    by_chance = expected_by_chance(analyses)
    starts, ends = ([100 * one.knn[i] for one in found.values()] for i in (0, 1))
    dips = sum(len(one.dips or ()) for one in analyses)
    print(
        f"\n{capability}: {alone} of {len(found)} seeds alone, {together} of {len(groups)} choices of {DEMO_SEEDS}. "
        f"{first} spikes of {arm.first} (by chance {by_chance / len(analyses[0].layers):.1f}), {len(spikes)} in all "
        f"({by_chance:.1f}), up to {max((spike.ratio for spike in spikes), default=0):.0f}x. kNN {min(starts):.0f} to "
        f"{max(starts):.0f}% at the start, {min(ends):.0f} to {max(ends):.0f}% at the end; {dips} dips."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--frozen", action="store_true")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    chosen = range(given.first, given.first + given.seeds)
    side = FROZEN if given.frozen else LEARNED
    if not given.table:
        train(given.folder, chosen, side)
    table(given.folder, chosen, side)
