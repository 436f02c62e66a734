"""Packs the gradient series of decisive runs into stabilitylab/open_data/first-layer-spikes/.

    python experiments/open_data.py --runs-dir DIR

DIR holds the finished runs of `experiments/small/first_layer_spikes.toml` and `first_layer_spikes_fashion.toml`. The
data card beside the files, README.md, is written by hand; its counts of runs and iterations are updated.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pandas as pd

import stabilitylab as sl
from stabilitylab.run.loading import load_run
from stabilitylab.studies.collect import finished_runs
from stabilitylab.studies.series import write_series
from stabilitylab.studies.study import load_study

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "stabilitylab" / "open_data" / "first-layer-spikes"
STUDIES = {"digits": "first_layer_spikes.toml", "fashion-mnist": "first_layer_spikes_fashion.toml"}
MOST_SEEDS = 10
BITS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs-dir", type=Path, required=True)
    runs_dir = parser.parse_args().runs_dir
    TARGET.mkdir(parents=True, exist_ok=True)
    rows = []
    for data, file in STUDIES.items():
        study = load_study(ROOT / "experiments" / "small" / file)
        for run in finished_runs(study, runs_dir):
            train, optim = run.config.train, run.config.optim
            if train.seed >= study.first_seed + MOST_SEEDS:
                continue
            found = load_run(runs_dir / run.name)
            curve = found.series.evals["knn_top1"]
            mitigation = " + ".join(run.config.mitigation) or "none"
            lr = optim.base_lr * train.batch_size / 256
            name = f"{data}-{mitigation}-lr{lr:.4g}-seed{train.seed}"
            rows.append(
                {
                    "run": name,
                    "data": data,
                    "mitigation": mitigation,
                    "lr": f"{lr:.4g}",
                    "seed": train.seed,
                    "iterations": found.series.iterations,
                    "knn_samples": int(curve.num_samples[0]),
                    "knn_untrained": f"{curve.value[0]:.4f}",
                    "knn_end": f"{curve.value[-1]:.4f}",
                    "trained_as": run.name,
                }
            )
            write_series(runs_dir / run.name, TARGET / f"{name}.parquet", bits=BITS)
    table = pd.DataFrame(rows)
    table.to_csv(TARGET / "runs.csv", index=False, lineterminator="\n")
    data = sl.datasets.load(TARGET.name)
    spikes = {run: data.analyze(run).spikes["layer"] for run in table["run"]}  # in the files as they are, rounded
    table["spikes"] = [len(spikes[run]) for run in table["run"]]
    firsts = [(run, data.series(run).columns[0]) for run in table["run"]]
    table["spikes_first_layer"] = [int((spikes[run] == first).sum()) for run, first in firsts]
    table.to_csv(TARGET / "runs.csv", index=False, lineterminator="\n")
    card = TARGET / "README.md"
    counts = f"{len(table)} runs, {table['iterations'].sum():,} iterations"
    told = re.sub(r"\d+ runs, [\d,]+ iterations", counts, card.read_text(encoding="utf-8"), count=1)
    card.write_text(told, encoding="utf-8")
    size = sum(file.stat().st_size for file in TARGET.iterdir())
    print(f"{len(rows)} runs, {size / 1e6:.1f} MB in {TARGET}")


if __name__ == "__main__":
    main()
