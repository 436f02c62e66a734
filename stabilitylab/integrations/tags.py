"""Logs of tagged scalars (TensorBoard, Weights & Biases) as a run: tags like ``grad_norm/blocks.0`` are layers."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from stabilitylab.integrations.csv import GradsTable, LogFormatError, Scalar, write_run
from stabilitylab.models.layers import depth_order

Tags = Mapping[str, Mapping[int, float]]
"""tag -> {step -> value}"""

GRAD_TAG = r"(?:.*/)?(?:grad(?:ient)?s?(?:[_-]?(?:norm|2\.0_norm|l2))?(?:[_-]total)?)[/.](?P<layer>.+)"
_STEP_COLUMNS = ("_step", "step", "Step", "global_step", "trainer/global_step", "iteration")


def import_tags(runs_dir: Path, tags: Tags, *, source: str, grad_tag: str = GRAD_TAG, name: str | None = None) -> Path:
    """Write tagged scalars as a finished run and return its folder. ``grad_tag``: a pattern with a group ``layer``
    that says which tags are gradient norms; all others become scalars, ``loss`` and ``*_top1`` by their own names.
    LogFormatError where no tag is a gradient norm."""
    try:
        pattern = re.compile(grad_tag)
    except re.error as error:
        raise LogFormatError(f"--grad-tag {grad_tag!r} is no regular expression: {error}") from None
    if "layer" not in pattern.groupindex:
        raise LogFormatError(f"--grad-tag {grad_tag!r} needs a group named layer: (?P<layer>.+)")
    matches = {tag: match["layer"] for tag in tags if (match := pattern.fullmatch(tag))}
    if not matches:
        shown = ", ".join(sorted(tags)[:6]) or "none"
        raise LogFormatError(
            f"no tag of {source} is a gradient norm (looked for {grad_tag}); tags: {shown}; say which with --grad-tag"
        )
    table = GradsTable()
    order = depth_order(list(dict.fromkeys(matches.values())))
    table.layers, table.depths = order, list(range(len(order)))
    for tag, layer in matches.items():
        for step, value in sorted(tags[tag].items()):
            if value < 0:
                raise LogFormatError(f"{source}: {tag} is {value:g} at step {step}; a norm is not negative")
            table.iteration.append(step)
            table.layer.append(order.index(layer))
            table.grad_norm.append(value)
            table.grad_max.append(None)
    scalars = [
        Scalar(step, _short(tag), value, None)
        for tag, series in tags.items()
        if tag not in matches
        for step, value in sorted(series.items())
    ]
    return write_run(runs_dir, table, scalars, config={"source": source}, name=name)


def _short(tag: str) -> str:
    """``val/knn_top1`` -> ``knn_top1`` and ``train/loss`` -> ``loss``: known names; others stay whole."""
    last = tag.rpartition("/")[2]
    return last if last in ("knn_top1",) or tag in ("loss", "train/loss") else tag


def read_tensorboard(folder: Path) -> Tags:
    """Every scalar of the event files under ``folder``. Needs the extra ``stabilitylab[tensorboard]``."""
    try:
        from tensorboard.backend.event_processing import event_accumulator
    except ImportError:
        raise LogFormatError("reading event files needs: pip install 'stabilitylab[tensorboard]'") from None
    files = sorted(folder.rglob("*tfevents*")) if folder.is_dir() else []
    if not files:
        raise LogFormatError(f"{folder} holds no event file (*tfevents*); give TensorBoard's log folder")
    tags: dict[str, dict[int, float]] = {}
    for file in files:
        events = event_accumulator.EventAccumulator(str(file), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            tags.setdefault(tag, {}).update({e.step: float(e.value) for e in events.Scalars(tag)})
        for tag in events.Tags()["tensors"]:  # torch.utils.tensorboard with new_style=True
            for event in events.Tensors(tag):
                values = event.tensor_proto.float_val
                if len(values) == 1:
                    tags.setdefault(tag, {})[event.step] = float(values[0])
    return tags


def read_wandb(path: Path) -> Tags:
    """A Weights & Biases export: CSV with a step column, or JSON lines as ``wandb`` writes its history."""
    tags: dict[str, dict[int, float]] = {}
    for line, row in _rows(path):
        step = next((row[name] for name in _STEP_COLUMNS if name in row), None)
        if step is None:
            raise LogFormatError(f"{path}, line {line}: no step column; one of {', '.join(_STEP_COLUMNS)} is needed")
        at = _number(step)
        if at is None or at < 0 or not float(at).is_integer():
            raise LogFormatError(f"{path}, line {line}: step {step!r} is not a whole number from 0 up")
        for name, cell in row.items():
            value = _number(cell)
            if value is not None and name not in _STEP_COLUMNS and not name.startswith("_"):
                tags.setdefault(name.rpartition(" - ")[2], {})[int(at)] = value
    if not tags:
        raise LogFormatError(f"{path} holds no numbers; export the run's history with its step column")
    return tags


def _rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix in (".jsonl", ".ndjson", ".json"):
                for line, text in enumerate(file, 1):
                    if text.strip():
                        try:
                            row = json.loads(text)
                        except json.JSONDecodeError as error:
                            raise LogFormatError(f"{path}, line {line}: not JSON: {error.msg}") from None
                        if not isinstance(row, dict):
                            raise LogFormatError(f"{path}, line {line}: not a JSON object; one object a line is needed")
                        yield line, row
            else:
                reader = csv.DictReader(file)
                for cells in reader:
                    yield reader.line_num, dict(cells)
    except OSError as error:
        raise LogFormatError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise LogFormatError(f"{path} is not UTF-8 text; save it as UTF-8") from None


def _number(cell: object) -> float | None:
    """A number, NaN and infinity written as words included; None for anything else."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str) or cell == "":
        return None
    try:
        return float(cell)
    except ValueError:
        return math.nan if cell == "NaN" else None
