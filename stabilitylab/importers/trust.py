"""Checks of imported data: notes about limitations and oddities of the numbers."""

from __future__ import annotations

import numpy as np

from stabilitylab.importers.choose import Chosen
from stabilitylab.importers.series import Log, Series, shortened
from stabilitylab.metrics import scale_of

CAP_SHARE = 0.05
"""A norm counts as clipped if at least this share of its values, and at least CAP_COUNT, equal the maximum."""
CAP_COUNT = 10
MOST_EVENTS = 50
"""Up to this many gaps or non-finite periods get an event each; further ones are only counted."""


def examine(log: Log, chosen: Chosen) -> None:
    """Note the recording step, gaps, buckets, caps, percentages, approximate and non-finite values."""
    norms = [layer.norm for layer in chosen.layers]
    if norms:
        _recording_step(log, norms)
        _non_finite(log, norms)
        _approximate(log, norms)
        for series in norms:
            _cap(log, series)
            if series.high is not None:
                series.value = np.fmax(series.value, series.high)
                log.rows = "bucket"
    buckets = [s for s in log.series.values() if s.low is not None or s.high is not None]
    if buckets:
        log.note(
            "buckets",
            f"{len(buckets)} series have a minimum and a maximum per row: the export groups several steps into one row "
            f"({shortened(s.name for s in buckets)}); the maximum is used for gradient norms",
        )
    _percent(log, chosen)


def _recording_step(log: Log, norms: list[Series]) -> None:
    steps = max((series.step for series in norms), key=len)
    if len(steps) < 2:
        return
    between = np.diff(steps)
    usual = int(np.median(between))
    unit = log.axis or "iteration"
    text = f"a row every {usual} {unit}s" if usual > 1 else f"a row every {unit}"
    if usual > 1:
        text += f": events shorter than {usual} {unit}s cannot be resolved"
    spread = np.unique(between)
    if len(spread) > 1 and (between != usual).mean() > 0.1:
        text += f"; the distance varies from {spread[0]} to {spread[-1]}"
    log.note("recording_step", text)
    wide = np.flatnonzero(between > max(1.5 * usual, usual + 1) if usual > 1 else between > 1)
    if len(wide) > 0 and len(wide) <= 0.1 * len(between):
        for index in wide[:MOST_EVENTS]:
            start, end = int(steps[index]), int(steps[index + 1])
            log.note("gap", f"nothing was recorded between {unit} {start} and {end}", start)
        if len(wide) > MOST_EVENTS:
            log.note("gap", f"{len(wide) - MOST_EVENTS} more gaps in the record")


def _non_finite(log: Log, norms: list[Series]) -> None:
    bad: dict[int, int] = {}
    for series in norms:
        for step in series.step[~np.isfinite(series.value)].tolist():
            bad[step] = bad.get(step, 0) + 1
    if not bad:
        return
    every = max((series.step for series in norms), key=len)
    place = {int(step): index for index, step in enumerate(every)}
    stretches: list[list[int]] = []
    for step in sorted(bad):
        if stretches and place.get(step, -1) == place.get(stretches[-1][-1], -3) + 1:
            stretches[-1].append(step)
        else:
            stretches.append([step])
    for stretch in stretches[:MOST_EVENTS]:
        first, last = stretch[0], stretch[-1]
        when = f"at {first}" if first == last else f"from {first} to {last}"
        layers = max(bad[step] for step in stretch)
        log.note("nonfinite", f"the norm of {layers} of {len(norms)} layers is NaN or infinite {when}", first)
    if len(stretches) > MOST_EVENTS:
        log.note("nonfinite", f"{len(stretches) - MOST_EVENTS} more stretches of NaN or infinite norms")


def _approximate(log: Log, norms: list[Series]) -> None:
    approximate = [series.name for series in norms if series.approximate]
    if approximate:
        log.note(
            "approximate",
            f"the norms of {len(approximate)} layers are approximate: they were computed from histogram bins "
            f"({shortened(approximate)})",
        )


def _cap(log: Log, series: Series) -> None:
    finite = series.value[np.isfinite(series.value) & (series.value > 0)]
    if len(finite) < 2 * CAP_COUNT:
        return
    top = float(finite.max())
    at_top = int((finite >= top * (1 - 1e-4)).sum())
    if CAP_COUNT <= at_top < len(finite) and at_top >= CAP_SHARE * len(finite):
        log.note(
            "clipped",
            f"{series.name} is {top:g} in {at_top:,} of {len(finite):,} rows and never higher: it was logged after "
            "clipping, so the height of spikes is lost",
        )


def is_percent(series: Series) -> bool:
    """Whether an accuracy or error rate is in percent: its maximum is above 1 and at most 100."""
    finite = series.value[np.isfinite(series.value)]
    return len(finite) > 0 and scale_of(series.name, finite) == "percent"


def _percent(log: Log, chosen: Chosen) -> None:
    percent = [
        s.name for s, declared in chosen.metrics if declared.percent or (declared.percent is None and is_percent(s))
    ]
    if percent:
        log.note("percent", f"{shortened(percent)}: in percent, kept as logged")
