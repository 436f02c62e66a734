"""Time and memory of the complete analysis of a large run from the store, compared with a simple pandas version.

    python benchmarks/analysis.py [--quick]

A run of 100,000 iterations x 150 layers (15 million rows) with planted waves is analysed. Ours: `answer_run` with
everything (reading, spikes, calibration, episodes, lags by two estimates, dips, the row of a comparison), first without
and then with a cached result. "pandas": spikes of single values from the same two rolling medians, without consecutive
values, calibration and lag. "pandas, trailing": one trailing median and one trailing spread in a single pass. Each runs
in its own process, so that memory is measured separately. They alternate, and the better of two rounds counts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks._truth import add_spike, ar_noise, spaced
from stabilitylab.store.writer import LayerRow, RunWriter

LIMIT_SECONDS, LIMIT_GB, LIMIT_RATIO = 10.0, 2.0, 5.0


def write_run(folder: Path, iterations: int, num_layers: int) -> None:
    rng = np.random.default_rng(15_000_000)
    onsets = spaced(rng, iterations, iterations // 2500, apart=600)
    layers = [LayerRow(i, f"layer_{i}", i, 1, True) for i in range(num_layers)]
    config = {"mitigation": [], "train": {"seed": 0}, "optim": {"base_lr": 0.1}}
    with RunWriter.create(folder, config=config, meta={}, layers=layers) as writer:
        at = np.arange(iterations)
        for depth in range(num_layers):
            x = 0.2 * ar_noise(rng, iterations, kind="t3" if depth % 2 else "normal", phi=0.5)
            for onset in onsets:
                add_spike(x, int(onset) + depth // 3, rng.uniform(1.5, 3.0), int(rng.integers(2, 30)))
            norm = np.exp(x).astype(np.float32)
            writer.append("layer_stats", {"iteration": at, "layer_id": np.full(iterations, depth), "grad_norm": norm})
            if depth % 10 == 9:
                writer.publish(wait=True)
        every = np.arange(0, iterations, 100)
        value = rng.binomial(5000, 0.7, len(every)) / 5000
        writer.append("evals", {"iteration": every, "metric": "knn_top1", "value": value, "num_samples": 5000})


def ours(folder: str) -> str:
    from stabilitylab.run.answers import answer_run

    found = answer_run(Path(folder)).analysis
    assert found.lag is not None
    return f"{len(found.spikes or ())} spikes, {len(found.episodes or ())} episodes, lag {found.lag.median_iterations}"


def with_pandas(folder: str) -> str:
    """A direct pandas implementation of the detector's definition, without calibration, lag and episodes."""
    return _pandas(folder, _events_by_definition)


def trailing_pandas(folder: str) -> str:
    """A simpler detector: one pass and one trailing median, with spikes included in the baseline."""
    return _pandas(folder, _events_trailing)


def _pandas(folder: str, events: Callable[[pd.Series[float]], int]) -> str:
    from stabilitylab.store.reader import open_run

    with open_run(folder) as reader:
        frame = reader.query("SELECT layer_id, iteration, grad_norm FROM layer_stats ORDER BY layer_id, iteration").df()
    layers = frame.groupby("layer_id")["grad_norm"]
    return f"{sum(events(np.log(norm.astype(float).reset_index(drop=True))) for _, norm in layers)} events"


def _events_trailing(x: pd.Series[float]) -> int:
    middle = x.rolling(200, min_periods=50).median().shift(1)
    spread = 1.4826 * (x - middle).abs().rolling(500, min_periods=50).median().shift(1)
    return _count((x - middle) / spread > 6)


def _events_by_definition(x: pd.Series[float]) -> int:
    """Medians of the previous and the next 200 unflagged values, the larger of two scales, both signs, two passes."""
    flagged = pd.Series(False, index=x.index)
    for _ in range(2):
        y = x[~flagged]
        before = y.rolling(200, min_periods=50).median().shift(1).reindex(x.index).ffill()
        after = y[::-1].rolling(200, min_periods=50).median().shift(1)[::-1].reindex(x.index).bfill()
        sizes = (y - before[y.index]).abs()
        past = sizes.rolling(500, min_periods=50).median()
        future = sizes[::-1].rolling(500, min_periods=50).median()[::-1]
        scale = (1.4826 * np.maximum(past, future)).clip(lower=0.01).reindex(x.index).ffill()
        up = (x - np.maximum(before, after.fillna(before))) / scale
        down = (np.minimum(before, after.fillna(before)) - x) / scale
        events = (up > 6) & (x - before > np.log(2))
        flagged = (up > 3) | (down > 3)
    return _count(events)


def _count(fires: pd.Series[bool]) -> int:
    return int((fires & ~fires.shift(1, fill_value=False)).sum())


def _child(work: Callable[[str], str], folder: str, out: Connection) -> None:
    import scipy.stats  # noqa: F401  # imports are nobody's analysis

    import stabilitylab.run.answers  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    said = work(folder)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    out.send((wall, cpu, after.ru_maxrss / 2**20, said))


def measured(work: Callable[[str], str], folder: Path) -> tuple[float, float, float, str]:
    """Wall seconds, processor seconds, peak GB and the result."""
    here, there = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(work, str(folder), there))
    process.start()
    there.close()
    found: tuple[float, float, float, str] = here.recv()
    process.join()
    return found


def main(iterations: int, num_layers: int, rounds: int, *, alone: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "large"
        run.mkdir()
        write_run(run, iterations, num_layers)
        print(f"{iterations:,} iterations x {num_layers} layers = {iterations * num_layers:,} rows")
        print(f"{'':<22}{'seconds':>9}{'cpu s':>8}{'peak GB':>9}  found")
        runs: dict[str, list[tuple[float, float, float, str]]] = {
            "ours": [],
            "ours, kept answer": [],
            "pandas": [],
            "pandas, trailing": [],
        }
        for _ in range(rounds):  # alternating, so that other load affects both
            for file in (run / "analysis").glob("*.json"):
                file.unlink()
            runs["ours"].append(measured(ours, run))
            runs["ours, kept answer"].append(measured(ours, run))
            if not alone:
                runs["pandas"].append(measured(with_pandas, run))
                runs["pandas, trailing"].append(measured(trailing_pandas, run))
        best = {name: min(found) for name, found in runs.items() if found}
        for name, (wall, cpu, memory, said) in best.items():
            print(f"{name:<22}{wall:>9.2f}{cpu:>8.2f}{memory:>9.2f}  {said}")
        wall, cpu, memory, _ = best["ours"]
        if alone:
            return
        faster = best["pandas"][0] / wall
        for name in ("pandas", "pandas, trailing"):
            times = best[name]
            print(f"{name}: {times[0] / wall:.1f} times as long, {times[1] / cpu:.1f} times the processor time")
        if iterations * num_layers >= 15_000_000:
            kept = [f"{wall:.1f} s of {LIMIT_SECONDS:g}", f"{memory:.2f} GB of {LIMIT_GB:g}", f"{faster:.1f}x of 5x"]
            broken = wall > LIMIT_SECONDS or memory > LIMIT_GB or faster < LIMIT_RATIO
            print(f"{'NOT KEPT' if broken else 'kept'}: {', '.join(kept)}")
            if broken:
                raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10,000 iterations x 30 layers")
    parser.add_argument("--rounds", type=int, default=2, help="turns each takes; the best counts")
    parser.add_argument("--alone", action="store_true", help="without pandas")
    given = parser.parse_args()
    main(*((10_000, 30) if given.quick else (100_000, 150)), rounds=given.rounds, alone=given.alone)
