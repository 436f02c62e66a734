"""The content of each chart: its data, labels and marks. `report/html/draw.py` and `report/paper/draw.py` draw them.

A chart is built from analysed runs and computes nothing new. The drawing code chooses colours, sizes and the number of
points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stabilitylab.analysis.metrics import curve_of
from stabilitylab.analysis.results import Episode, RunAnalysis, Spike
from stabilitylab.analysis.series import LayerSeries, RunSeries
from stabilitylab.comparison.arms import Arm, lr_label, mitigation_label
from stabilitylab.comparison.results import Comparison, RunSummary
from stabilitylab.report.marks import Axis, Band, Bars, Chart, Heat, Line, Mark, Outline, Points
from stabilitylab.report.metric import MetricText
from stabilitylab.run.analysed import AnalysedRun, last_finite

MOST_OUTLINES = 300
NUMBERED = 12
LAG_EDGES = np.arange(-102.5, 103, 5)


ITERATION = Axis("iteration")


def iteration_axis(series: Sequence[RunSeries]) -> Axis:
    """The axis of iterations; for a single run that counts tokens or images, with these on the other side."""
    if len(series) != 1 or series[0].consumed is None:
        return ITERATION
    name, iteration, count = series[0].consumed
    rising, first = np.unique(count, return_index=True)
    step = 10.0 ** math.floor(math.log10(rising[-1]))
    step *= next(factor for factor in (0.2, 0.5, 1, 2) if rising[-1] / (factor * step) <= 5.5)
    ticks = np.arange(math.ceil(rising[0] / step), math.floor(rising[-1] / step) + 1) * step
    at = np.interp(ticks, rising, np.asarray(iteration, dtype=np.float64)[first])
    return Axis("iteration", beside=(name, tuple(zip(at.tolist(), map(_short, ticks.tolist()), strict=True))))


def _short(count: float) -> str:
    """``1.5M`` for 1,500,000."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.4g}{letter}"
    return f"{count:.4g}"


def spikes(analysis: RunAnalysis, layers: Sequence[LayerSeries], x: Axis = ITERATION) -> Chart:
    """Gradient norms of some layers on a log axis, with spikes marked at their peak, as in the paper's Figure 4. ``x``:
    see `iteration_axis`."""
    marks: list[Mark] = []
    for style, layer in enumerate(layers):
        norm = np.where(layer.grad_norm > 0, layer.grad_norm, np.nan)
        marks.append(Line(layer.iteration, norm, layer.name, style, hover="%{y:.3g} at %{x}"))
        events = _spikes(analysis, layer.name)
        if events:
            at = np.searchsorted(layer.iteration, [s.peak for s in events])
            texts = tuple(f"{s.ratio:.1f}x, z = {s.z:.1f}, from {s.onset} to {s.end}" for s in events)
            marks.append(Points(layer.iteration[at], norm[at], layer.name, "spikes", style, texts))
    return Chart(x, Axis("gradient norm", log=True), tuple(marks))


def heatmap(run: AnalysedRun) -> Chart:
    """Heat map, iterations x layers, of the norm divided by the layer's usual norm. Spike onsets are marked. Episodes
    with several layers are outlined; those with the most layers are numbered."""
    layers = tuple(run.trained_layers)
    row = {layer.name: place for place, layer in enumerate(layers)}
    events = [s for s in _spikes(run.analysis) if s.layer in row]
    texts = tuple(f"{s.ratio:.1f}x" for s in events)
    onsets = Points(
        [s.onset for s in events], [row[s.layer] for s in events], "spike onset", "onsets", 0, texts, hollow=True
    )
    return Chart(
        iteration_axis([run.series]),
        Axis("", names=tuple(layer.name for layer in layers)),
        (Heat(layers), onsets, *_outlines(run.analysis.episodes or (), row)),
    )


def outlined(episodes: Sequence[Episode]) -> list[tuple[int, Episode]]:
    """(number, episode) of the episodes with several layers, numbered from 1 by start. If there are too many, only
    those with the most layers."""
    shared = [(n, e) for n, e in enumerate(episodes, 1) if len(e.order) > 1]
    farthest = sorted(shared, key=lambda item: (-len(item[1].order), -item[1].z))[:MOST_OUTLINES]
    return sorted(farthest, key=lambda item: item[1].start)


def numbered(episodes: Sequence[Episode]) -> set[int]:
    """The numbers shown in the chart: those of the episodes with the most layers."""
    farthest = sorted(outlined(episodes), key=lambda item: (-len(item[1].order), -item[1].z))
    return {n for n, _ in farthest[:NUMBERED]}


def _outlines(episodes: Sequence[Episode], row: dict[str, int]) -> list[Outline]:
    shown = numbered(episodes)
    outlines = []
    for n, episode in outlined(episodes):
        rows = [row[layer] for layer, _ in episode.order if layer in row]
        if rows:
            number = str(n) if n in shown else ""
            outlines.append(Outline(episode.start - 1, episode.end + 1, min(rows), max(rows), number))
    return outlines


def lag(analysis: RunAnalysis) -> Chart:
    """Histogram of matched lags compared with that of circular shifts. The 95% interval of the median is shaded."""
    measured = analysis.lag
    assert measured is not None
    marks: list[Mark] = [Bars(LAG_EDGES, _shares(measured.lags), "measured")]
    if measured.null_lags:
        marks.append(Line(LAG_EDGES, _shares(measured.null_lags), "by chance", 1, role="chance"))
    if measured.ci95 is not None:
        marks.append(Band(*measured.ci95))
    title = f"iterations from {measured.source} to {measured.target}"
    return Chart(Axis(title), Axis("share of matched spikes"), tuple(marks))


def _shares(lags: Sequence[float]) -> np.ndarray:
    counts = np.histogram(lags, LAG_EDGES)[0]
    return np.asarray(counts / max(counts.sum(), 1))


def propagation(analysis: RunAnalysis) -> Chart:
    """Median lag of each layer behind the first, with its interval. A travelling wave appears as a slope."""
    known = [
        (row.layer, row.median_lag, row.ci95, row.num_matched)
        for row in analysis.propagation or ()
        if row.median_lag is not None and row.ci95 is not None
    ]
    points = Points(
        [median for _, median, _, _ in known],
        list(range(len(known))),
        "median lag",
        texts=tuple(f"{matched} matched" for _, _, _, matched in known),
        low=tuple(interval[0] for _, _, interval, _ in known),
        high=tuple(interval[1] for _, _, interval, _ in known),
    )
    names = tuple(name for name, _, _, _ in known)
    return Chart(Axis("median lag, iterations", zero_line=True), Axis("", names=names), (points,) if known else ())


def metric_curves(runs: Sequence[AnalysedRun], arms: Sequence[Arm]) -> Chart:
    """The judged metric of every run. Dips are marked; their span is highlighted if the arm has one run."""
    form = MetricText.of([run.analysis for run in runs])
    metric, scale = form.metric, form.factor
    marks: list[Mark] = []
    for arm in arms:
        members = [(runs[place], curve_of(runs[place].series, metric)) for place in arm.members]
        curves = [(run, curve) for run, curve in members if curve is not None and len(curve.value)]
        several = len(arm.members) > 1
        finals = [scale * end for _, curve in curves if (end := last_finite(curve.value)) is not None]
        note = (f"{np.mean(finals):.1f} %" if metric.share else f"{np.mean(finals):.4g}") if finals else ""
        note += f", n = {len(finals)}" if several else ""
        for run, curve in curves:
            value = scale * curve.value
            hover = "%{y:.1f} % at %{x}" if metric.share else "%{y:.4g} at %{x}"
            role = "seed" if several else "curve"
            marks.append(Line(curve.iteration, value, arm.label, arm.index, role, hover, run.name, note))
            dips = run.analysis.dips or ()
            for dip in dips if not several else ():
                end = dip.recovered if dip.recovered is not None else int(curve.iteration[-1])
                inside = (curve.iteration >= dip.start) & (curve.iteration <= end)
                marks.append(Line(curve.iteration[inside], value[inside], arm.label, arm.index, "span"))
            at = [place for dip in dips for place in np.flatnonzero(curve.iteration == dip.trough)[:1]]
            if at:
                word = "dip" if form.higher else "rise"
                texts = tuple(f"{word} of {form.depth(d.depth)}, {d.z:.1f} standard errors" for d in dips)
                marks.append(Points(curve.iteration[at], value[at], arm.label, "dips", arm.index, texts, run=run.name))
        first = curves[0][1].iteration if curves else np.empty(0)
        if len(curves) > 1 and all(np.array_equal(curve.iteration, first) for _, curve in curves):
            mean = scale * np.mean([curve.value for _, curve in curves], axis=0)
            marks.append(Line(first, mean, arm.label, arm.index, "mean", "mean %{y:.4g} at %{x}", note=note))
    return Chart(iteration_axis([run.series for run in runs]), Axis(form.title), tuple(marks))


def loss_curves(runs: Sequence[AnalysedRun], arms: Sequence[Arm]) -> Chart:
    """Training loss of every run that recorded it."""
    marks = tuple(
        Line(*run.loss, arm.label, arm.index, "seed" if len(arm.members) > 1 else "curve", "%{y:.3f} at %{x}", run.name)
        for arm in arms
        for run in (runs[place] for place in arm.members)
        if run.loss is not None
    )
    return Chart(iteration_axis([run.series for run in runs]), Axis("loss"), marks)


def lr_sensitivity(comparison: Comparison) -> Chart:
    """The final value by base learning rate: one point per run, one line through the means of each mitigation."""
    summaries, form = comparison.runs, MetricText.of_comparison(comparison)
    unit = " %" if form.metric.share else ""
    marks: list[Mark] = []
    for style, name in enumerate(mitigations(summaries)):
        known = [
            (s.run, s.base_lr, form.factor * value)
            for s in summaries
            if s.mitigation == name and (value := s.value(form.final_column)) is not None and s.base_lr > 0
        ]
        if not known:
            continue
        label = mitigation_label(name)
        rates = sorted({lr for _, lr, _ in known})
        means = [float(np.mean([value for _, lr, value in known if lr == rate])) for rate in rates]
        marks.append(Line(rates, means, label, style, hover=f"mean %{{y:.4g}}{unit} at lr %{{x}}"))
        texts = tuple(f"{run}: {value:.4g}{unit}" for run, _, value in known)
        marks.append(Points([lr for _, lr, _ in known], [v for _, _, v in known], label, "runs", style, texts))
    rates = sorted({s.base_lr for s in summaries if s.base_lr > 0})
    ticks = tuple((rate, lr_label(rate)) for rate in rates)
    return Chart(Axis("base learning rate", log=True, ticks=ticks), Axis(f"final {form.title}"), tuple(marks))


def finals(runs: Sequence[AnalysedRun], arms: Sequence[Arm], comparison: Comparison) -> Chart:
    """The final value of every run by arm. Runs with the same seed and learning rate are joined by a line; the note
    lists the effects."""
    form = MetricText.of_comparison(comparison)
    final = {s.run: s.value(form.final_column) for s in comparison.runs}
    places: dict[tuple[int, str], list[tuple[int, float]]] = {}
    for x, arm in enumerate(arms):
        for run in (runs[place] for place in arm.members):
            value = final[run.name]
            if value is not None:
                pair = run.named.seed, lr_label(run.named.base_lr)
                places.setdefault(pair, []).append((x, form.factor * value))
    marks: list[Mark] = [
        Line([x for x, _ in points], [y for _, y in points], "", role="join") for points in places.values()
    ]
    for x, arm in enumerate(arms):
        values = [y for points in places.values() for at, y in points if at == x]
        marks.append(Points([x] * len(values), values, arm.label, "runs", arm.index))
        if len(values) > 1:
            marks.append(Line([x - 0.16, x + 0.16], [float(np.mean(values))] * 2, arm.label, arm.index, "mean"))
    note = tuple(
        f"{e.mitigation}: {form.number(e.difference, '+')} "
        + (f"(95%: {form.number(e.ci95[0], '+')} to {form.number(e.ci95[1], '+')})" if e.ci95 else "(no interval)")
        for e in comparison.effects
        if e.metric == form.final_column
    )
    ticks = tuple((float(x), arm.label) for x, arm in enumerate(arms))
    return Chart(Axis("", ticks=ticks), Axis(f"final {form.title}"), tuple(marks), note)


def mitigations(summaries: Sequence[RunSummary]) -> list[str]:
    """The distinct mitigations, ``none`` first."""
    return sorted(dict.fromkeys(s.mitigation for s in summaries), key=lambda name: name != "none")


def several_rates(summaries: Sequence[RunSummary], metric: MetricText) -> bool:
    """Whether the runs have at least two learning rates."""
    known = (s for s in summaries if not math.isnan(s.base_lr) and s.value(metric.final_column) is not None)
    return len({lr_label(s.base_lr) for s in known}) > 1


def _spikes(analysis: RunAnalysis, layer: str | None = None) -> list[Spike]:
    """Spikes, without non-finite ones, which have no height."""
    return [s for s in analysis.spikes or () if s.kind == "spike" and layer in (None, s.layer)]
