"""Text logs: Megatron-LM, llm.c, modded-nanogpt, nanoGPT, MetricLogger (DeiT, MAE, DINO), Swin, torchtitan, and others
with ``--pattern``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from stabilitylab.errors import LogFormatError
from stabilitylab.importers import names
from stabilitylab.importers.epochs import EpochCounter
from stabilitylab.importers.formats import Format, Sample, open_log
from stabilitylab.importers.options import Options
from stabilitylab.importers.series import MAX_ITERATION, Log, Points, Refused, plain_number, whole_step, why_no_step
from stabilitylab.importers.text_lines import Line, parse_below, parse_line

_LEAST_LINES = 3
_LONGEST_LINE = 20_000


def recognises(sample: Sample) -> bool:
    if sample.is_folder or not sample.lines:
        return False
    lines = [(0, line) for line in sample.lines[:3000] if len(line) < _LONGEST_LINE]
    parsed = [line for _, line in _parsed(lines)]
    stepped = [line for line in parsed if line.step is not None]
    trained = [
        line
        for line in stepped
        if any(
            names.is_loss(name) or names.is_training_loss(name) or names.total_section(name) is not None
            for name in line.values
        )
    ]
    if len(trained) >= min(_LEAST_LINES, len(sample.lines)) and len({(line.epoch, line.step) for line in trained}) > 1:
        return True
    # The Trainer prints dictionaries without a step.
    plain = [line for line in parsed if line.step is None and "grad_norm" in line.values]
    return len(plain) >= _LEAST_LINES


def read(path: Path, options: Options) -> list[Log]:
    """One run. An evaluation line without a step belongs to the preceding step."""
    refused = Refused(path, options.strict)
    if options.pattern is not None:
        return [_read_pattern(path, options.pattern, refused)]
    log = Log("text", path)
    points = Points()
    step, counts, smoothed, numbered, samples = -1, [0, 0], 0, 0, False
    count_on = EpochCounter()
    for number, line in _parsed(_lines(path, refused)):
        at = line.step
        if at is not None and line.epoch is not None:
            at = count_on(line.epoch, at, line.length)
        if at is None and "grad_norm" in line.values:
            step += 1
            numbered += 1
        elif at is not None:
            if at > MAX_ITERATION:
                refused.add(number, why_no_step(at))
                continue
            step = at
        elif step < 0:
            continue
        training = any(names.total_section(name) is not None for name in line.values)
        if training:
            counts[min(line.counts_from, 1)] += 1
        smoothed += line.smoothed
        samples |= line.samples
        points.row = number
        for name, value in line.values.items():
            points.add(name, step, value)
    log.series = points.series()
    log.counts_from = 1 if counts[1] > counts[0] else 0
    if not log.series:
        raise LogFormatError(f"{path} has no line with a step and a number; describe its lines with --pattern")
    if smoothed:
        log.rows = "mean"
        log.note("means", f"{smoothed:,} lines contain medians or means over a window of iterations, not single values")
    if samples:
        log.axis = "sample"
        log.note("axis", "the lines count samples and not iterations, so the axis is the number of samples")
    if numbered:
        log.note("row_numbers", "the lines contain no step, so those with a gradient norm are numbered from 0")
    refused.add_note(log)
    return [log]


def _read_pattern(path: Path, text: str, refused: Refused) -> Log:
    """Lines that match a regular expression. Its groups are ``step``, and either ``name`` (or ``layer``) with ``value``
    (or ``norm``), or one group per series with the name of the series."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise LogFormatError(f"--pattern {text!r} is not a valid regular expression: {error}") from None
    groups = set(pattern.groupindex)
    if "step" not in groups or len(groups) < 2:
        raise LogFormatError(
            f"--pattern {text!r} needs the group (?P<step>...) and one group per series, such as (?P<grad_norm>...)"
        )
    named = next((name for name in ("name", "layer") if name in groups), None)
    valued = next((name for name in ("value", "norm", "grad_norm") if name in groups), None)
    log = Log("text", path)
    points = Points()
    matched = 0
    for line, text in _lines(path, refused):
        match = pattern.search(text)
        if match is None:
            continue
        matched += 1
        step = whole_step(match["step"])
        if step is None:
            refused.add(line, why_no_step(match["step"]))
            continue
        points.row = line
        if named is not None and valued is not None:
            pairs = [(match[named], match[valued])]
            if named == "layer" and match[named]:
                log.layers[match[named]] = match[named]
        else:
            pairs = [(name, match[name]) for name in groups - {"step"}]
        for name, cell in pairs:
            value = plain_number((cell or "").strip())
            if value is not None and name:
                points.add(name, step, value)
            elif cell:
                refused.add(line, f"{name} {cell[:40]!r} is not a number")
    if not matched:
        raise LogFormatError(f"--pattern {text!r} matches no line of {path}")
    log.series = points.series()
    refused.add_note(log)
    return log


def _parsed(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Line]]:
    """The numbered lines with values. Indented lines below one that only gives the step belong to that step."""
    above: Line | None = None
    for number, text in lines:
        values = parse_below(text) if above is not None else {}
        if above is not None and values:
            yield number, replace(above, values=values)
            continue
        line = parse_line(text)
        above = line if line is not None and not line.values else None
        if line is not None and line.values:
            yield number, line


def _lines(path: Path, refused: Refused) -> Iterator[tuple[int, str]]:
    """The numbered lines of a file. Carriage returns of progress bars split a line into several."""
    try:
        with open_log(path) as file:
            for line, raw in enumerate(file, 1):
                if len(raw) > 50 * _LONGEST_LINE:
                    refused.add(line, f"longer than {50 * _LONGEST_LINE:,} bytes")
                    continue
                for part in raw.decode("utf-8", errors="replace").replace("\r", "\n").split("\n"):
                    if part.strip() and len(part) <= _LONGEST_LINE:
                        yield line, part
    except (OSError, EOFError) as error:
        raise LogFormatError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


FORMAT = Format(
    "text", "a text log with a step and a loss or gradient norm on its lines", recognises, read,
    (".log", ".txt", ".out", "iteration", "step", "loss", "grad norm", "grad_norm", "norm:"),
)  # fmt: skip
