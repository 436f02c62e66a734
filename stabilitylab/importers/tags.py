"""Logs of tagged scalars (TensorBoard, Weights & Biases) as a run: tags like ``grad_norm/blocks.0`` are layers."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.csv import MAX_ITERATION, GradsTable, Scalar, write_run
from stabilitylab.models.layers import depth_order

Tags = Mapping[str, Mapping[int, float]]
"""tag -> {step -> value}"""

GRAD_TAG = r"(?:.*/)?(?:grad(?:ient)?s?(?:[_-]?(?:norm|2\.0_norm|l2))?(?:[_-]total)?)[/.](?P<layer>.+)"
_MAX_TAG = re.compile(r"(?:.*/)?grad(?:ient)?s?[_-](?:max|inf(?:_norm)?)[/.](?P<layer>.+)")
_STEP_COLUMNS = ("_step", "step", "Step", "global_step", "trainer/global_step", "iteration")


def import_tags(runs_dir: Path, tags: Tags, *, source: str, grad_tag: str = GRAD_TAG, name: str | None = None) -> Path:
    """Write tagged scalars as a finished run and return its folder. ``grad_tag``: a pattern with a group ``layer``
    that says which tags are gradient norms; tags like ``grad_max/LAYER`` go with them. All others become scalars, a
    single ``loss`` and ``knn_top1`` by their own names. LogFormatError where no tag is a gradient norm."""
    try:
        pattern = re.compile(grad_tag)
    except re.error as error:
        raise LogFormatError(f"--grad-tag {grad_tag!r} is no regular expression: {error}") from None
    if "layer" not in pattern.groupindex:
        raise LogFormatError(f"--grad-tag {grad_tag!r} needs a group named layer: (?P<layer>.+)")
    norms = _by_layer(tags, pattern)
    if not norms:
        shown = ", ".join(sorted(tags)[:6]) or "none"
        raise LogFormatError(
            f"no tag of {source} is a gradient norm (looked for {grad_tag}); tags: {shown}; say which with --grad-tag"
        )
    used = set(norms.values())
    maxima = {layer: tag for layer, tag in _by_layer(tags, _MAX_TAG).items() if layer in norms and tag not in used}
    table = GradsTable()
    table.layers = depth_order(_natural(list(norms)))
    table.depths = list(range(len(table.layers)))
    for index, layer in enumerate(table.layers):
        largest = tags[maxima[layer]] if layer in maxima else {}
        for tag in {norms[layer], maxima.get(layer, norms[layer])}:
            for step, value in tags[tag].items():
                if value < 0:
                    raise LogFormatError(f"{source}: {tag} is {value:g} at step {step}; a norm is not negative")
        for step, value in sorted(tags[norms[layer]].items()):
            table.iteration.append(step)
            table.layer.append(index)
            table.grad_norm.append(value)
            table.grad_max.append(largest.get(step))
    rest = [tag for tag in tags if tag not in used and tag not in maxima.values()]
    short = {tag: _short(tag) for tag in rest}
    alone = Counter(short.values())
    scalars = []
    for tag in rest:
        known = short[tag] if alone[short[tag]] == 1 else tag  # of two, the one that has the name itself keeps it
        for step, value in sorted(tags[tag].items()):
            if known == "knn_top1" and not (0 <= value <= 1 or math.isnan(value)):
                raise LogFormatError(f"{source}: {tag} is {value:g} at step {step}, not a fraction between 0 and 1")
            scalars.append(Scalar(step, known, value, None))
    return write_run(runs_dir, table, scalars, config={"source": source}, name=name)


def _by_layer(tags: Tags, pattern: re.Pattern[str]) -> dict[str, str]:
    """layer -> its tag."""
    found: dict[str, str] = {}
    for tag in tags:
        match = pattern.fullmatch(tag)
        if match is None:
            continue
        other = found.setdefault(match["layer"], tag)
        if other != tag:
            raise LogFormatError(f"{other} and {tag} are both layer {match['layer']!r}; choose one with --grad-tag")
    return found


def _natural(names: list[str]) -> list[str]:
    """Names that come by the alphabet, with ``blocks.2`` before ``blocks.10``; any other order is the log's own."""
    if names != sorted(names):
        return names
    return sorted(names, key=lambda name: [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)])


def _short(tag: str) -> str:
    """``val/knn_top1`` -> ``knn_top1`` and ``train/loss`` -> ``loss``: known names; others stay whole."""
    if tag.rpartition("/")[2] == "knn_top1":
        return "knn_top1"
    return "loss" if tag in ("loss", "train/loss") else tag


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
    homes: dict[str, Path] = {}
    for file in files:
        events = event_accumulator.EventAccumulator(str(file), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        points = [(tag, e.step, float(e.value)) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
        for tag in events.Tags()["tensors"]:  # torch.utils.tensorboard with new_style=True
            for event in events.Tensors(tag):
                values = event.tensor_proto.float_val
                points += [(tag, event.step, float(values[0]))] if len(values) == 1 else []
        for tag, step, value in points:
            home = homes.setdefault(tag, file.parent)
            if home != file.parent:
                raise LogFormatError(f"{home} and {file.parent} both hold {tag}: two runs; import one of the folders")
            if not 0 <= step <= MAX_ITERATION:
                raise LogFormatError(f"{file}: step {step} of {tag} is not a whole number from 0 to {MAX_ITERATION}")
            tags.setdefault(tag, {})[step] = value
    return tags


def read_wandb(path: Path) -> Tags:
    """A Weights & Biases export: CSV with a step column, or JSON lines as ``wandb`` writes its history."""
    tags: dict[str, dict[int, float]] = {}
    runs: set[str] = set()  # the page names a column "run - tag"
    for line, row in _rows(path):
        step = next((row[name] for name in _STEP_COLUMNS if name in row), None)
        if step is None:
            raise LogFormatError(f"{path}, line {line}: no step column; one of {', '.join(_STEP_COLUMNS)} is needed")
        at = _number(step)
        if at is None or not 0 <= at <= MAX_ITERATION or not at.is_integer():
            raise LogFormatError(f"{path}, line {line}: step {str(step)[:40]!r} is not a whole number from 0 up")
        for name, cell in row.items():
            value = _number(cell)
            if value is None or name in _STEP_COLUMNS or name.startswith("_"):
                continue
            run, _, tag = name.rpartition(" - ")
            if tag.endswith(("__MIN", "__MAX")) and name[:-5] in row:
                continue  # the page's own smoothing
            runs |= {run} - {""}
            if len(runs) > 1:
                raise LogFormatError(f"{path} mixes runs: {', '.join(sorted(runs))}; export one")
            tags.setdefault(tag, {})[int(at)] = value
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
                        except (ValueError, RecursionError) as error:
                            raise LogFormatError(f"{path}, line {line}: not JSON: {error}") from None
                        if not isinstance(row, dict):
                            raise LogFormatError(f"{path}, line {line}: not a JSON object; one object a line is needed")
                        yield line, row
            else:
                reader = csv.DictReader(file)
                for cells in reader:
                    yield reader.line_num, dict(cells)
    except OSError as error:
        raise LogFormatError(f"cannot read {path}: {error.strerror}") from None
    except csv.Error as error:
        raise LogFormatError(f"{path} is not readable as CSV: {error}") from None
    except UnicodeDecodeError:
        raise LogFormatError(f"{path} is not UTF-8 text; save it as UTF-8") from None


def _number(cell: object) -> float | None:
    """A number, NaN and infinity written as words included; None for anything else."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str) or cell == "":
        return None
    try:
        return float(cell)
    except (ValueError, OverflowError):
        return None
