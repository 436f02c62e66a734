"""Logs of records, one dictionary per step, such as W&B's history, a Trainer's state and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stabilitylab.errors import LogFormatError
from stabilitylab.importers import names
from stabilitylab.importers.epochs import counted_on
from stabilitylab.importers.formats import open_log
from stabilitylab.importers.histograms import histogram_norm
from stabilitylab.importers.options import Options
from stabilitylab.importers.series import Log, Points, Refused, plain_number, shortened, whole_step, why_no_step

Record = tuple[int, dict[str, Any]]
"""The line (or position) of a record, and the record."""

STEPS = (
    "trainer/global_step",
    "train/global_step",
    "global_step",
    "train/step",
    "step",
    "Step",
    "iteration",
    "iter",
    "Iteration",
    "iters",
    "global_iter",
    "num_updates",
    "update",
    "updates",
    "current_steps",
    "_step",
)
EPOCHS = ("epoch", "Epoch")
MOST_ITEMS = 10_000
"""Longer lists of gradient norms are not layers."""
_INTERNAL = ("_runtime", "_timestamp", "_wandb", "timestamp", "time", "wall_time", "datetime")


def log_of_records(
    records: Iterable[Record],
    path: Path,
    options: Options,
    *,
    format: str,
    run: str = "",
    refused: Refused | None = None,
    stepless_is_normal: bool = False,
) -> Log:
    """Named series from records.

    The step is ``--step``, else the first of ``STEPS`` in the records, else the epoch. Without any of these, the
    records are numbered, provided that one of them has a gradient norm or a training loss.

    ``stepless_is_normal``: records without a step are expected, so they are counted instead of refused.
    """
    records = list(records)
    log = Log(format, path, run=run)
    refused = refused if refused is not None else Refused(path, options.strict)
    key = _step_key(records, options, path)
    steps = _steps(records, key, log)
    points = Points()
    skipped: dict[str, None] = {}
    stepless: list[str] = []
    for (line, record), step in zip(records, steps, strict=True):
        if step is None:
            field_names = [name for name, _ in flat(record)]
            if stepless_is_normal:
                stepless += [name for name in field_names if name not in EPOCHS][:1]
            elif any(plain_number(value) is not None for _, value in flat(record)):
                refused.add(line, why_no_step(record.get(key) if key else None))
            continue
        points.row += 1
        for name, value in flat(record):
            if name == key or name in STEPS or name in _INTERNAL or name.startswith("_"):
                continue
            number = plain_number(value)
            if number is not None:
                points.add(name, step, number)
            elif isinstance(value, dict | str) and (norm := histogram_norm(value)) is not None:
                points.add(name, step, norm, approximate=True)
            elif value is not None and value != "":
                skipped.setdefault(name)
    log.series = points.series()
    if stepless:
        log.note(
            "no_step", f"{len(stepless)} records without a step were skipped ({shortened(dict.fromkeys(stepless))})"
        )
    refused.add_note(log)
    texts = [name for name in skipped if name not in log.series]
    if texts:
        log.note("skipped", f"{len(texts)} non-numeric entries were skipped ({shortened(texts)})")
    if key in EPOCHS:
        log.axis = "epoch"
        log.note("axis", "the log has no step, so the axis is the epoch and each row covers a whole epoch")
    return log


def flat(record: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of every entry, flattened: ``{"val": {"acc": 1}}`` gives ``val.acc``."""
    for name, value in record.items():
        whole = f"{before}{name}"
        if isinstance(value, dict) and "_type" not in value and before.count(".") < 8:
            yield from flat(value, f"{whole}.")
        elif isinstance(value, list) and 1 < len(value) <= MOST_ITEMS and _is_gradient(f"{whole}.0"):
            yield from ((f"{whole}.{place}", item) for place, item in enumerate(value))
        else:
            yield whole, value


def json_lines(path: Path, refused: Refused) -> Iterator[Record]:
    """The objects of a JSON lines file. Invalid lines are refused."""
    try:
        with open_log(path) as file:
            for line, raw in enumerate(file, 1):
                if not raw.strip():
                    continue
                try:
                    record = json.loads(raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
                except UnicodeDecodeError:
                    refused.add(line, "not UTF-8 text")
                except (ValueError, RecursionError) as error:
                    refused.add(line, f"not JSON: {str(error)[:80]}")
                else:
                    if isinstance(record, dict):
                        yield line, record
                    else:
                        refused.add(line, "not a JSON object")
    except (OSError, EOFError) as error:
        raise LogFormatError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _step_key(records: Sequence[Record], options: Options, path: Path) -> str:
    """The key of the step; empty without one."""
    if options.step is not None:
        if not any(options.step in record for _, record in records):
            raise LogFormatError(f"{path} has no column {options.step!r} for --step; it has {_entries(records)}")
        return options.step
    for name in (*STEPS, *EPOCHS):
        count = sum(whole_step(record.get(name)) is not None for _, record in records)
        other = sum(record.get(name) is not None for _, record in records)
        if count and count >= 0.5 * other:
            return name
    return ""


def _steps(records: Sequence[Record], key: str, log: Log) -> list[int | None]:
    """The step of each record; None if it has none."""
    if not key:
        if not any(
            _is_gradient(name) or names.is_training_loss(name)
            for _, record in records[:1000]
            for name, _ in flat(record)
        ):
            raise LogFormatError(
                f"{log.path} has no step column (one of {', '.join(dict.fromkeys(STEPS))}); choose one with --step"
            )
        log.note("row_numbers", "the log has no step, so its rows are numbered from 0")
        return list(range(len(records)))
    steps = [whole_step(record.get(key)) for _, record in records]
    if key == "_step":
        return steps
    if key == "step":
        _replace_epochs(records, steps)
    steps = _across_epochs(records, steps, key, log)
    # W&B writes some records without the trainer's step, which lies between those of the neighbouring records.
    known = [(whole_step(record.get("_step")), step) for (_, record), step in zip(records, steps, strict=True)]
    pairs = [(own, step) for own, step in known if own is not None and step is not None]
    holes = [
        i for i, (own, step) in enumerate(known) if own is not None and step is None and _holds_numbers(records[i])
    ]
    if not pairs or not holes:
        return steps
    pairs.sort()
    own, trained = np.array(pairs).T
    for i in holes:
        place = known[i][0]
        assert place is not None
        after = int(np.searchsorted(own, place))
        steps[i] = int(trained[min(after, len(own) - 1)])
    log.note("borrowed_steps", f"{len(holes)} records have no {key}; that of the next record with one is used")
    return steps


def _replace_epochs(records: Sequence[Record], steps: list[int | None]) -> None:
    """mmengine's evaluations give the epoch as ``step``, and its training records both ``iter`` and ``step``. An
    evaluation belongs to the iteration before it."""
    iterations = [whole_step(record.get("iter")) for _, record in records]
    if not any(iterations) or any(i is not None and i != step for i, step in zip(iterations, steps, strict=True)):
        return
    last = None
    for place, iteration in enumerate(iterations):
        last = iteration if iteration is not None else last
        if last is not None and steps[place] is not None:
            steps[place] = last


def _across_epochs(records: Sequence[Record], steps: list[int | None], key: str, log: Log) -> list[int | None]:
    """Steps that count on through all epochs, if they start again in each one. Evaluations of mmdetection
    (``"mode": "val"``) give the number of their own batches, and belong to the end of their epoch."""
    epoch_key = next((name for name in EPOCHS if any(name in record for _, record in records)), None)
    if epoch_key is None or key in EPOCHS:
        return steps
    epochs = [whole_step(record.get(epoch_key)) for _, record in records]
    training = [
        i for i, (step, epoch) in enumerate(zip(steps, epochs, strict=True))
        if step is not None and epoch is not None and records[i][1].get("mode") != "val"
    ]  # fmt: skip
    if any(record.get(epoch_key) is not None and epochs[i] is None for i, (_, record) in enumerate(records)):
        return steps  # the epoch is a fraction, so the step is not counted within it
    unrolled = counted_on(np.array([steps[i] for i in training]), np.array([epochs[i] for i in training]))
    if unrolled is None:
        return steps
    unrolled.add_note(log, key)
    result: list[int | None] = list(steps)
    for i, step in zip(training, unrolled.step.tolist(), strict=True):
        result[i] = step
    for i, epoch in enumerate(epochs):
        if epoch is not None and records[i][1].get("mode") == "val":
            result[i] = unrolled.end_of(epoch)
    return result


def _holds_numbers(record: Record) -> bool:
    return any(not name.startswith(("_", "system")) for name, _ in flat(record[1]))


def _is_gradient(name: str) -> bool:
    return names.total_section(name) is not None or names.layer_of(name) is not None


def _entries(records: Sequence[Record]) -> str:
    return shortened(dict.fromkeys(name for _, record in records[:100] for name in record), 8)
