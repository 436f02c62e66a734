"""Hugging Face's ``trainer_state.json``, by itself or in a folder of checkpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.formats import Format, Sample, whole_json
from stabilitylab.importers.options import Options
from stabilitylab.importers.records import Record, log_of_records
from stabilitylab.importers.series import Log, Refused

STATE = "trainer_state.json"
_CLOSING = ("train_runtime", "train_samples_per_second", "total_flos")


def recognises(sample: Sample) -> bool:
    if sample.is_folder:
        return bool(_states(sample.path))
    return '"log_history"' in sample.head or (
        sample.path.name == STATE
        or (sample.head.lstrip().startswith("{") and '"global_step"' in sample.head and '"trial_params"' in sample.head)
    )


def read(path: Path, options: Options) -> list[Log]:
    """One run: the history of the file, or of the latest checkpoint in the folder."""
    file = _latest(path) if path.is_dir() else path
    state = whole_json(file)
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise LogFormatError(f"{file} has no log_history; pass the trainer_state.json of a checkpoint")
    log = history_log([(i, r) for i, r in enumerate(history, 1) if isinstance(r, dict)], file, options, "huggingface")
    if path.is_dir() and file.parent != path:
        log.note("checkpoint", f"read from {file.parent.name}, the latest of {len(_states(path))} states")
    return [log]


def is_history(records: Sequence[dict[str, Any]]) -> bool:
    """Whether the records come from the Trainer's ``log_history``, possibly saved line by line."""
    return any({"epoch", "step", "learning_rate"} <= record.keys() for record in records)


def history_log(
    history: Sequence[Record], path: Path, options: Options, format: str, refused: Refused | None = None
) -> Log:
    """The Trainer's records as named series. Its first update is step 1, predictions have no step, and the last record
    is a summary of the training."""
    records = [(place, r) for place, r in history if not any(name in r for name in _CLOSING)]
    log = log_of_records(records, path, options, format=format, stepless_is_normal=True, refused=refused)
    log.counts_from = 1
    log.rows = "sampled"
    closing = len(history) - len(records)
    if closing:
        log.note("closing", f"{closing} summary {'row' if closing == 1 else 'rows'} at the end of training skipped")
    loss = log.series.get("loss")
    if loss is not None and len(loss) > 1 and loss.step[1] - loss.step[0] > 1:
        log.note(
            "means",
            "the loss is the mean over the updates since the previous row; the gradient norm is that of the last one",
        )
    return log


def _states(folder: Path) -> list[Path]:
    return [file for file in (folder / STATE, *folder.glob(f"checkpoint-*/{STATE}")) if file.is_file()]


def _latest(folder: Path) -> Path:
    """The state with the largest step."""

    def reached(file: Path) -> tuple[int, int]:
        number = re.fullmatch(r"checkpoint-(\d+)", file.parent.name)
        match = re.search(rb'"global_step"\s*:\s*(\d+)', file.read_bytes())
        return (int(match[1]) if match else -1, int(number[1]) if number else 2**62)

    states = _states(folder)
    if not states:
        raise LogFormatError(f"{folder} contains no {STATE} and no checkpoint-*/{STATE}")
    return max(states, key=reached)


FORMAT = Format(
    "huggingface", "a Hugging Face trainer_state.json, or a folder of checkpoints", recognises, read,
    ("trainer_state.json", '"log_history"', '"global_step"', '"learning_rate"', "checkpoint-"),
)  # fmt: skip
