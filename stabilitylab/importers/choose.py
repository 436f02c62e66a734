"""Classifies the series of a log: layers, total norm, loss, learning rate and metrics."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from stabilitylab.errors import LogFormatError
from stabilitylab.importers import names
from stabilitylab.importers.layers import LayerNorms, layers_of_parameters, natural_order
from stabilitylab.importers.options import Metric, Options, layer_pattern
from stabilitylab.importers.series import Log, Refused, Series, shortened

GLOBAL = "global"
"""Name of the only layer of a run whose log contains just the total gradient norm."""


@dataclass
class Chosen:
    """The parts of a run. ``total``: norm of the whole gradient. ``metrics``: evaluation metrics with the user's
    options. ``scalars``: all other numeric series."""

    layers: list[LayerNorms] = field(default_factory=list)
    total: Series | None = None
    loss: Series | None = None
    lr: Series | None = None
    epoch: Series | None = None
    metrics: list[tuple[Series, Metric]] = field(default_factory=list)
    scalars: list[Series] = field(default_factory=list)


def choose(log: Log, options: Options) -> Chosen:
    """Assign the series of a log to the parts of a run. Raises LogFormatError if an option names a missing series."""
    rest = dict(log.series)
    _drop_axes(log, rest)
    _drop_epoch_means(log, rest)
    norms, maxima, totals = _gradients(log, rest, options)
    refused = Refused(log.path, options.strict)
    for series in (*norms.values(), *maxima.values(), *totals):
        rest.pop(series.name, None)
        _drop_negative(series, refused)
    refused.add_note(log)
    chosen = Chosen(layers=layers_of_parameters(log, norms, maxima))
    chosen.total = _one_total(log, totals, rest)
    if not chosen.layers and chosen.total is not None:
        chosen.layers = [LayerNorms(GLOBAL, chosen.total)]
        log.note(
            "global",
            f"only the total norm ({chosen.total.name}) was logged, so there is one layer, {GLOBAL}, and no lag",
        )
    chosen.loss = _loss(rest, options)
    chosen.lr = _first(rest, names.is_learning_rate)
    chosen.epoch = _first(rest, lambda name: name.rpartition("/")[2].lower() == "epoch")
    for metric in options.metrics:
        if metric.name not in rest:
            raise LogFormatError(f"{log.path} has no series {metric.name!r} for --metric; it has {_names(log.series)}")
        chosen.metrics.append((rest.pop(metric.name), metric))
    for name in _metrics(rest, chosen, log):
        chosen.metrics.append((rest.pop(name), Metric(name)))
    chosen.scalars = list(rest.values())
    return chosen


def _metrics(rest: dict[str, Series], chosen: Chosen, log: Log) -> list[str]:
    """Names of evaluation metrics. Beside metrics that are measured less often than the loss, an accuracy or a
    perplexity of every training row is one of the training batch, unless its name tells otherwise."""
    found = [name for name in rest if names.is_metric(name)]
    often = 0 if chosen.loss is None or log.axis == "epoch" else len(chosen.loss)
    batches = [name for name in found if not names.is_evaluation(name) and len(rest[name]) > 0.9 * often > 0]
    rare = [name for name in found if len(rest[name]) < 0.5 * often] or chosen.metrics
    return [name for name in found if name not in batches] if rare else found


def _drop_axes(log: Log, rest: dict[str, Series]) -> None:
    axes = [name for name in rest if names.is_axis(name)]
    for name in axes:
        del rest[name]
    if axes:
        log.note("axes", f"{len(axes)} series over samples, tokens or time were skipped ({shortened(axes)})")


def _drop_epoch_means(log: Log, rest: dict[str, Series]) -> None:
    """Drop epoch means. Lightning logs some values both per step and as the mean of an epoch."""
    means = [name for name in rest if name.endswith("_epoch") and f"{name[:-6]}_step" in rest and "grad" in name]
    for name in means:
        del rest[name]


def _gradients(
    log: Log, rest: dict[str, Series], options: Options
) -> tuple[dict[str, Series], dict[str, Series], list[Series]]:
    """Gradient norms and largest entries by layer or parameter, and series that may be the total norm."""
    if options.grads is not None:
        return _gradients_by_pattern(log, rest, options.grads)
    norms: dict[str, Series] = {}
    maxima: dict[str, Series] = {}
    totals: list[tuple[str, Series]] = []
    for name, series in rest.items():
        if name in log.layers:
            norms[log.layers[name]] = series
        elif name in log.maxima:
            maxima[log.maxima[name]] = series
    if norms:
        return norms, maxima, [s for s in rest.values() if names.total_section(s.name) is not None]
    statistics = [name for name in rest if names.is_statistic(name)]
    twice: list[str] = []
    for name, series in rest.items():
        if names.is_statistic(name):
            continue
        section = names.total_section(name)
        if section is not None:
            totals.append((section, series))
        elif (layer := names.maximum_of(name)) is not None:
            maxima.setdefault(layer, series)
        elif (layer := names.layer_of(name)) is not None:
            if layer in norms:
                twice.append(name)
                if len(series) <= len(norms[layer]):
                    continue
            norms[layer] = series
    norms = _without_ending(norms)
    if statistics:
        log.note(
            "statistics",
            f"{len(statistics)} series of minima, maxima or means are not layers ({shortened(statistics)})",
        )
    if twice:
        log.note(
            "twice", f"{len(twice)} layers were logged under two names; the longer series is used ({shortened(twice)})"
        )
    return norms, maxima, _split_totals(totals, norms)


def _without_ending(norms: dict[str, Series]) -> dict[str, Series]:
    """``grads/LAYER/norm`` gives ``LAYER``, if the names of all layers end like this."""
    for ending in ("/norm", "/l2", "/l2_norm"):
        if len(norms) > 1 and all(layer.endswith(ending) and layer != ending for layer in norms):
            return {layer.removesuffix(ending): series for layer, series in norms.items()}
    return norms


def _split_totals(totals: list[tuple[str, Series]], norms: dict[str, Series]) -> list[Series]:
    """The real totals. Moves ``LAYER/grad_norm`` of several layers, and a layer called ``norm``, to the layers."""
    for section, series in list(totals):
        if norms and names.is_ambiguous_total(series.name):
            norms[series.name.rpartition("/")[2]] = series
            totals.remove((section, series))
    named = [(section, series) for section, series in totals if not names.is_known_section(section)]
    paths = [section for section, _ in named if "." in section or "/" in section or any(c.isdigit() for c in section)]
    if len(named) > 1 and (len(named) > 2 or len(paths) == len(named)):
        for section, series in named:
            layer = names.layer_of(series.name)
            norms.setdefault(layer if layer and layer.lower() == section else section, series)
        totals = [pair for pair in totals if pair not in named]
    return [series for _, series in totals]


def _gradients_by_pattern(
    log: Log, rest: dict[str, Series], text: str
) -> tuple[dict[str, Series], dict[str, Series], list[Series]]:
    pattern = layer_pattern(text)
    norms: dict[str, Series] = {}
    left_out = []
    for name, series in rest.items():
        match = pattern.fullmatch(name)
        if match is None:
            continue
        layer = match["layer"] or GLOBAL
        if names.is_no_layer(layer):
            left_out.append(name)
            continue
        if layer not in norms or len(series) > len(norms[layer]):
            norms[layer] = series
    if not norms:
        raise LogFormatError(
            f"no series of {log.path} is a gradient norm (looked for {text}); it has {_names(log.series)}; "
            "choose them with --grads"
        )
    if left_out:
        log.note(
            "statistics", f"{len(left_out)} series of minima, maxima or means are not layers ({shortened(left_out)})"
        )
    maxima = {layer: s for s in rest.values() if (layer := names.maximum_of(s.name)) in norms and layer is not None}
    used = {series.name for series in norms.values()}
    return norms, maxima, [s for s in rest.values() if names.total_section(s.name) is not None and s.name not in used]


def _one_total(log: Log, totals: list[Series], rest: dict[str, Series]) -> Series | None:
    """The total norm. Of several, the one before clipping, else the longest; the others become scalars."""
    totals = [series for series in totals if len(series)]
    if not totals:
        return None
    raw = [s for s in totals if re.search(r"unclipped|pre.?clip|before.?clip|raw", s.name, re.IGNORECASE)]
    training = [s for s in totals if not names.is_evaluation(s.name)]
    best = max(raw or training or totals, key=len)
    others = [series for series in totals if series is not best]
    for series in others:
        rest[series.name] = series
    if others:
        log.note("totals", f"{best.name} is used as the total norm; not used: {shortened(s.name for s in others)}")
    return best


def _drop_negative(series: Series, refused: Refused) -> None:
    negative = series.value < 0
    if negative.any():
        first = int(np.flatnonzero(negative)[0])
        where = f"{series.name} at step {series.step[first]}"
        refused.add(where, f"{series.value[first]:g} is negative, but a norm cannot be", int(negative.sum()))
        kept = series.take(~negative)
        series.step, series.value, series.row = kept.step, kept.value, kept.row
        series.num_samples, series.low, series.high = kept.num_samples, kept.low, kept.high


def _loss(rest: dict[str, Series], options: Options) -> Series | None:
    if options.loss is not None:
        if options.loss not in rest:
            raise LogFormatError(f"no series {options.loss!r} for --loss; available: {_names(rest)}")
        return rest.pop(options.loss)
    known = [name for wanted in names.LOSSES for name in rest if names.without_unit(name).lower() == wanted]
    if known:
        # The first by name, unless another has far more values.
        densest = max(known, key=lambda name: len(rest[name]))
        name = known[0] if 2 * len(rest[known[0]]) >= len(rest[densest]) else densest
        return rest.pop(name)
    some = [name for name in rest if names.is_loss(name)]
    return rest.pop(max(some, key=lambda name: len(rest[name]))) if some else None


def _first(rest: dict[str, Series], fits: object) -> Series | None:
    matching = [name for name in rest if callable(fits) and fits(name)]
    return rest.pop(max(matching, key=lambda name: len(rest[name]))) if matching else None


def _names(series: Iterable[str]) -> str:
    return shortened(natural_order(sorted(series)), 6) or "nothing"
