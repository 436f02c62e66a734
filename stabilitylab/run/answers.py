"""Analyse a run in the store. Results are cached in the run's folder as ``analysis/<settings>.json`` and reused until
the run has new rows."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from pydantic import TypeAdapter
from pydantic_core import from_json

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.results import LayerSeries, RunAnalysis, RunSeries
from stabilitylab.comparison.results import RunSummary
from stabilitylab.errors import NoDataError
from stabilitylab.run.analysed import summarize
from stabilitylab.run.series import load_series
from stabilitylab.store.compaction import SEGMENTS
from stabilitylab.store.database import DATABASE
from stabilitylab.store.manifest import MANIFEST
from stabilitylab.store.reader import RunReader, open_run
from stabilitylab.unfinished import remove_unfinished
from stabilitylab.version import __version__

FOLDER = "analysis"
VERSION = 20
"""Version of the cached results. Increase it when the same rows give different numbers, to invalidate the cache."""


@dataclass(frozen=True)
class Answer:
    """An analysed run: its results, its row in a comparison, its configuration, status and damage."""

    analysis: RunAnalysis
    summary: RunSummary
    config: dict[str, Any]
    status: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Kept:
    analysis: RunAnalysis
    summary: RunSummary


_FORM = TypeAdapter(_Kept)


class Subject(TypedDict, total=False):
    """What to analyse of a run, beside its spikes.

    ``metric`` and ``goal``: the curve to search for dips; see `stabilitylab.analysis.metrics.choose_metric`.
    ``first`` and ``last``: the layers between which the lag is measured; see `stabilitylab.analysis.ends.find_ends`.
    """

    metric: str | None
    goal: str | None
    first: str | None
    last: str | None


def answer_run(
    run_dir: Path,
    settings: SpikeSettings | None = None,
    *,
    keep: bool = True,
    need_gradients: bool = True,
    **subject: Unpack[Subject],
) -> Answer:
    """The complete analysis of a run, cached or new.

    If the run has no gradients but ``need_gradients`` is true, only the metric is judged; raises NoDataError if there
    is no metric either.

    ``keep``: whether to use the cache. If the folder is not writable, the result is not cached.
    """
    settings = settings or SpikeSettings()
    rows = recorded_rows(run_dir)  # before reading: rows added meanwhile then only invalidate the cache
    asked = [subject.get(name) for name in Subject.__annotations__]
    file = run_dir / FOLDER / f"{_digest([VERSION, __version__, repr(settings), *asked])[:16]}.json"
    with open_run(run_dir) as reader:
        problems = tuple(reader.problems)
        kept = _load(file, rows) if keep else None
        if kept is None:
            series = load_series(reader)
            early = _signal(reader, series)
            analysis = analyze_run(series, settings=settings, early=early, **subject)
            kept = _Kept(analysis, summarize(series, analysis, reader.config))
            if keep and (analysis.layers or not need_gradients):
                _save(file, rows, kept)
        analysis = kept.analysis
        if not analysis.layers:
            if need_gradients:
                _must_have_a_metric(analysis, reader.status)
            analysis = _without_gradients(analysis)
        return Answer(analysis, kept.summary, reader.config, reader.status, problems)


EARLY_SIGNAL = "adam_rms"


def _signal(reader: RunReader, series: RunSeries) -> tuple[str, tuple[LayerSeries, ...]] | None:
    """RMS_t of every layer for which it was recorded; None if there is none."""
    recorded = reader.layer_series(EARLY_SIGNAL)
    if not recorded:
        return None
    ids = {row.name: row.layer_id for row in reader.layers()}
    layers = [
        LayerSeries(layer.name, layer.depth, *recorded[ids[layer.name]], layer.trainable)
        for layer in series.layers
        if ids[layer.name] in recorded
    ]
    return EARLY_SIGNAL, tuple(layers)


def _without_gradients(analysis: RunAnalysis) -> RunAnalysis:
    """The analysis of a run without gradients: its metric and its loss. What the gradients would show is None."""
    note = "no gradient norms were recorded: spikes, their lag and drift are not judged"
    kept = replace(analysis.only(spikes=False, lag=False, dips=True), loss_spikes=analysis.loss_spikes)
    return replace(kept, notes=(note, *analysis.notes))


def _must_have_a_metric(analysis: RunAnalysis, status: str) -> None:
    """Raise NoDataError for a run without gradients, unless its metric was judged."""
    if analysis.metric is not None and analysis.metric.judged:
        return
    if status == "running":
        raise NoDataError(
            f"run {analysis.run} is still running and has no gradients recorded yet; "
            "try again in a few seconds, or check that it was started with --log-grads"
        )
    raise NoDataError(
        f"run {analysis.run} has no recorded gradient norms; train with --log-grads, record grad_norm, "
        "or map the norms of an imported log with --grads"
    )


def recorded_rows(run_dir: Path) -> list[tuple[str, int, int]]:
    """A fingerprint that changes when a run gains rows or is renamed: the name, and size and modification time of its
    database and its segment manifest."""
    fingerprint = [(run_dir.absolute().name, 0, 0)]
    for path in (run_dir / DATABASE, run_dir / SEGMENTS / MANIFEST):
        try:
            state = path.stat()
        except OSError:
            continue
        fingerprint.append((path.name, state.st_size, state.st_mtime_ns))
    return fingerprint


def _load(file: Path, rows: list[tuple[str, int, int]]) -> _Kept | None:
    """The cached answer for exactly these rows; None if it is missing, outdated, unreadable or was modified."""
    try:
        stored = from_json(file.read_bytes())
        if stored["rows"] != [list(row) for row in rows] or stored["sha256"] != _digest_of(stored["answer"]):
            return None
        return _FORM.validate_json(stored["answer"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _save(file: Path, rows: list[tuple[str, int, int]], answer: _Kept) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(exist_ok=True)
        body = json.dumps(_FORM.dump_python(answer), default=_plain)
        text = json.dumps({"rows": rows, "sha256": _digest_of(body), "answer": body})
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
        remove_unfinished(file.parent, re.compile(r"[0-9a-f]+\.json\.(?P<pid>[0-9]+)\.tmp"))
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _digest_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")


def _digest(parts: list[Any]) -> str:
    return _digest_of(json.dumps(parts))
