"""Results of the detector on the recorded runs that ship with the package: a Markdown table per group of runs.

    python benchmarks/open_data.py

Takes about a second per run. The table is in docs/recorded.md.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd

import stabilitylab as sl


def main() -> None:
    data = sl.datasets.load("first-layer-spikes")
    runs = data.runs
    for (images, mitigation), group in runs.groupby(["data", "mitigation"], sort=False):
        counts: Counter[str] = Counter()
        largest: dict[str, float] = {}
        chance, mirrored, layers = 0.0, 0, []
        for run in group["run"]:
            found = data.analyze(run).result
            layers = [name for name, _ in found.layers]
            alarms = found.false_alarms
            if alarms is not None:
                chance, mirrored = chance + alarms.expected, mirrored + alarms.mirrored_events
            for spike in found.spikes or ():
                counts[spike.layer] += 1
                largest[spike.layer] = max(largest.get(spike.layer, 0.0), spike.ratio)
        length = int(group["iterations"].sum())
        lags = data.pooled_lags(data=images, mitigation=mitigation).set_index("target")
        print(
            f"\n{images}, {mitigation}: {len(group)} runs, {length:,} iterations; kNN ends at "
            f"{100 * np.mean(group['knn_end']):.1f}% (untrained {100 * np.mean(group['knn_untrained']):.1f}%); "
            f"by chance {chance / len(layers):.1f} spikes per layer; {mirrored} in the mirrored series of all layers\n"
        )
        print("| layer | spikes | per 10,000 iterations | largest | lag behind the first | 95% | matched | p |")
        print("|---|---|---|---|---|---|---|---|")
        for layer in layers:
            told = ["", "", "", ""]
            if layer in lags.index and pd.notna(lags.loc[layer, "median_iterations"]):
                row = lags.loc[layer]
                interval = " to ".join(f"{edge:g}" for edge in row["ci95"])
                told = [f"{row['median_iterations']:g}", interval, str(row["num_matched"]), f"{row['p_value']:.2g}"]
            rate = f"{1e4 * counts[layer] / length:.1f}"
            top = f"{largest[layer]:.1f}x" if layer in largest else ""
            print(f"| {' | '.join([layer, str(counts[layer]), rate, top, *told])} |")


if __name__ == "__main__":
    main()
