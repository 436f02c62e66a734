"""Early warning: which recorded signals rise before the spikes of a layer, in real runs and by chance.

    python benchmarks/early_warning.py DIR [--only TEXT] [--each]

DIR contains runs with recorded signals, such as the ``unstable-...`` runs of `_trained.py`. Public reports claim that
the norm of the update rises before gradient spikes, especially in the lower layers; `update_norm` is update_ratio *
weight_norm. Prints one table over all runs: a row per signal and layer, and per signal and half of the depth.

warned: spikes before which an alarm opens in the same layer, at most 20 iterations before. chance: the same under
circular shifts of the spikes. lead: median of the iterations from alarm to spike, with its 95% interval. false: alarms
per 10,000 iterations that no spike follows. AUC: probability that the signal reaches a higher level in the 20
iterations before a spike than in the 20 before a random iteration; it needs no threshold (0.5: no rise). It counts from
where the gradient first leaves the noise, not from half the height, and only spikes (first) without another spike of
any layer in the 60 iterations before, because the update stays large after a spike. p: of the warned spikes and of the
AUC, by the same shifts; "p Holm" is corrected over all pairs of signal and layer. Then the AUC of the lower half of the
layers against the upper half, with one value per run and Student's interval.

--each prints the results of each run as well.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.spikes import detect, shared_by
from stabilitylab.analysis.early_warning import HORIZON, early_warning, false_alarms_of
from stabilitylab.analysis.intervals import median_interval
from stabilitylab.analysis.lag import MIN_MATCHES
from stabilitylab.analysis.results import Spike
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


SHIFTS = 999
ALONE = 60


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


@dataclass
class Pair:
    """A signal of a layer over all runs, one after the other on one clock: alarms, spikes, ``fresh``, the iterations at
    which spikes begin to rise that follow no other, and ``before`` (n,), the highest score of the signal in the
    `HORIZON` iterations before each iteration."""

    alarms: list[int] = field(default_factory=list)
    spikes: list[Spike] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)
    before: list[np.ndarray] = field(default_factory=list)
    span: int = 0

    def add(self, series: LayerSeries, spikes: Sequence[Spike], fresh: Sequence[int], settings: SpikeSettings) -> None:
        self.fresh += [self.span + start for start in fresh]
        found = detect(series, replace(settings, ratio_open=1.0))
        self.alarms += [self.span + alarm.onset for alarm in found.spikes]
        for spike in spikes:
            self.spikes.append(replace(spike, onset=self.span + spike.onset, end=self.span + spike.end))
        length = int(series.iteration[-1]) + 1
        score = np.full(length + HORIZON, -np.inf)
        score[series.iteration + HORIZON] = found.score
        windows = np.lib.stride_tricks.sliding_window_view(score[:-1], HORIZON)
        self.before.append(windows.max(axis=1)[:length])
        self.span += length

    def level(self, at: np.ndarray) -> np.ndarray:
        """The probability that the signal is higher before the iterations ``at`` (..., k) than before a random one."""
        if not at.size:
            return np.full(at.shape[:-1], np.nan)
        before = np.concatenate(self.before)
        usable = np.sort(before[before > -np.inf])
        low, high = (np.searchsorted(usable, before[at], side=side) for side in ("left", "right"))
        share: np.ndarray = ((low + high) / 2 / len(usable)).mean(axis=-1)
        return share

    def row(self) -> list[float | str]:
        """spikes, warned, share, chance, p, lead, its interval, false alarms per 10,000, first, AUC, p of the AUC."""
        onsets = np.array([spike.onset for spike in self.spikes], dtype=np.int64)
        alarms = np.array(sorted(self.alarms), dtype=np.int64)
        moves = np.random.default_rng(0).integers(HORIZON + 1, self.span - HORIZON, SHIFTS)
        shifted = (onsets + moves[:, None]) % self.span

        def leads(at: np.ndarray) -> np.ndarray:
            """Iterations from the first alarm within the horizon to each of ``at``; 0 without one."""
            if not len(alarms):
                return np.zeros(at.shape, dtype=np.int64)
            first = alarms[np.minimum(np.searchsorted(alarms, at - HORIZON), len(alarms) - 1)]
            return np.where((first < at) & (first >= at - HORIZON), at - first, 0)

        own = leads(onsets)
        warned, lead = int((own > 0).sum()), own[own > 0].astype(float)
        by_chance = (leads(shifted) > 0).sum(axis=1)
        false = false_alarms_of(self.spikes, alarms, HORIZON)
        interval = "{:g} to {:g}".format(*median_interval(lead)) if len(lead) >= MIN_MATCHES else ""
        starts = np.array(self.fresh, dtype=np.int64)
        area, areas = float(self.level(starts)), self.level((starts + moves[:, None]) % self.span)
        return [
            len(onsets), warned, warned / len(onsets), float(by_chance.mean()) / len(onsets),
            (1 + int((by_chance >= warned).sum())) / (1 + SHIFTS), f"{np.median(lead):g}" if len(lead) else "",
            interval, 10_000 * false / self.span, len(starts), area, (1 + int((areas >= area).sum())) / (1 + SHIFTS),
        ]  # fmt: skip


def collected(readers: Sequence[RunReader]) -> tuple[dict[tuple[str, str], Pair], list[str]]:
    """Signal and layer -> pair over all runs, and the layers from first to last."""
    settings = SpikeSettings()
    pairs: dict[tuple[str, str], Pair] = {}
    names: list[str] = []
    for reader in readers:
        layers = [layer for layer in load_series(reader).layers if layer.trainable and len(layer.iteration)]
        shared = shared_by(layers, settings)
        found = {layer.name: detect(layer, settings, shared) for layer in layers}
        ends = np.array(sorted((s.onset, s.end) for one in found.values() for s in one.spikes)).reshape(-1, 2)
        names = [layer.name for layer in sorted(layers, key=lambda layer: layer.depth)]
        source = Stored(reader)
        for signal in SIGNALS:
            for series in source.load(signal, names):
                pairs.setdefault((signal, series.name), Pair())
                own = found[series.name]
                fresh = [at for at in own.starts if not ((ends[:, 0] < at) & (ends[:, 1] >= at - ALONE)).any()]
                pairs[signal, series.name].add(series, own.spikes, fresh, settings)
    return pairs, names


def half_of(pairs: dict[tuple[str, str], Pair], signal: str, layers: Sequence[str]) -> Pair:
    """The pairs of one signal and some layers, one after the other."""
    whole = Pair()
    for name in layers:
        pair = pairs.get((signal, name))
        if pair is not None and pair.spikes:
            shift = whole.span
            whole.alarms += [shift + at for at in pair.alarms]
            whole.fresh += [shift + at for at in pair.fresh]
            whole.spikes += [replace(s, onset=s.onset + shift, end=s.end + shift) for s in pair.spikes]
            whole.before += pair.before
            whole.span += pair.span
    return whole


def differences(readers: Sequence[RunReader]) -> None:
    """Print how much higher the level before spikes is in the lower half than in the upper one, over runs."""
    runs = [collected([reader]) for reader in readers]
    print("\nlevel (AUC) by run, lower half - upper half, runs with at least 3 first spikes in both")
    for signal in SIGNALS:
        levels = []
        for pairs, names in runs:
            halves = [half_of(pairs, signal, some) for some in (names[: len(names) // 2], names[len(names) // 2 :])]
            if min(len(half.fresh) for half in halves) >= 3:
                levels.append([half.level(np.array(half.fresh, dtype=np.int64)) for half in halves])
        if len(levels) >= 3:
            lower, upper = np.array(levels).T
            found = stats.ttest_rel(lower, upper)
            low, high = found.confidence_interval()
            between = f"{lower.mean() - upper.mean():+.2f} ({low:+.2f} to {high:+.2f}), p = {found.pvalue:.3f}"
            above = f"above 0.5 in {(lower > 0.5).sum()} and {(upper > 0.5).sum()}"
            print(f"{signal:<19}{len(levels):>3} runs: {lower.mean():.2f} - {upper.mean():.2f} = {between}; {above}")


def pooled(readers: Sequence[RunReader]) -> None:
    pairs, names = collected(readers)
    print(f"{len(readers)} runs, {sum(pair.span for (s, _), pair in pairs.items() if s == 'update_norm'):,} values")
    print(
        f"{'signal':<19}{'layer':<12}{'spikes':>7}{'warned':>8}{'share':>7}{'chance':>8}{'p':>7}{'p Holm':>8}", end=""
    )
    print(f"{'lead':>6}  {'interval':<12}{'false':>6}{'AUC':>6}{'p':>7}{'p Holm':>8}")
    rows = {key: pair.row() for key, pair in pairs.items() if len(pair.spikes) >= MIN_MATCHES}
    corrected = [holm({key: float(row[i]) for key, row in rows.items()}) for i in (4, 10)]  # type: ignore[arg-type]
    for key, row in rows.items():
        cells(key, row, *(found[key] for found in corrected))
    half = len(names) // 2
    for signal in SIGNALS:
        for which, some in (("lower half", names[:half]), ("upper half", names[half:])):
            whole = half_of(pairs, signal, some)
            if len(whole.spikes) >= MIN_MATCHES:
                cells((signal, which), whole.row(), None, None)
    for words, found in zip(("by alarms", "by AUC"), corrected, strict=True):
        sure = [key for key, p in found.items() if p < 0.05]
        best = min(sure, key=lambda key: (found[key], -float(rows[key][9])), default=None)  # type: ignore[arg-type]
        print(f"{words}: {len(sure)} of {len(rows)} pairs beyond chance; best: {' in '.join(best) if best else 'none'}")


def holm(p_values: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    found, largest = {}, 0.0
    for rank, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        found[key] = largest
    return found


def cells(key: tuple[str, str], row: list[float | str], p_holm: float | None, area_holm: float | None) -> None:
    spikes, warned, share, chance, p, lead, interval, false, fresh, area, area_p = row
    first, second = ("" if x is None else f"{x:.3f}" for x in (p_holm, area_holm))
    print(
        f"{key[0]:<19}{key[1]:<12}{spikes:>7}{warned:>8}{share:>7.2f}{chance:>8.3f}{p:>7.3f}{first:>8}{lead:>6}  "
        f"{interval:<12}{false:>6.1f}{fresh:>7}{area:>6.2f}{area_p:>7.3f}{second:>8}"
    )


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
    parser.add_argument("--each", action="store_true", help="also each run alone")
    given = parser.parse_args()
    paths = [path for path in sorted(given.folder.iterdir()) if given.only in path.name]
    with ExitStack() as stack:
        runs = [stack.enter_context(open_run(path)) for path in paths if (path / "run.duckdb").exists()]
        pooled(runs)
        differences(runs)
        for run in runs if given.each else ():
            judge(run)
