"""Parsing of one line of a training log: its step and its numbers, for many trainers."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"
_WORD = r"[A-Za-z_][\w@./\-]*"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

# MetricLogger (DeiT, MAE, DINO), Swin, MoCo v3, timm, mmdetection, mmengine: the step counts within an epoch.
_IN_EPOCH = re.compile(
    r"(?P<what>\w*)(?:\((?P<mode>\w+)\))?:?\s*\[?\s*(?P<epoch>\d+)(?:\s*/\s*\d+)?\s*\]?\s*\[\s*(?P<place>\d+)\s*/\s*(?P<length>\d+)\b"
)
# "Epoch 1/6, Step 20/100", "Epoch 0:  20%|##  | 20/100 [00:01<00:04"
_EPOCH_AND_STEP = re.compile(
    r"\bepoch:?\s*\[?\s*(?P<epoch>\d+)(?:\s*/\s*\d+)?\s*\]?(?:[\s,;|:\-]+(?:step|iter(?:ation)?|batch)\s*[:=\[(]?\s*"
    r"|:\s+\d+%\|[^|]*\|\s*)(?P<place>\d+)\s*/\s*(?P<length>\d+)(?!\d)",
    re.IGNORECASE,
)
_SAMPLES = re.compile(r"train epoch:\s*\d+\s*\[\s*\d+/\d+\s+\(\s*\d+(?:\.\d*)?%\)\]", re.IGNORECASE)
"""PyTorch's examples and OpenCLIP count samples in the brackets."""
_METRIC_LOGGER = re.compile(r"\w+\s+\[\s*(?P<step>\d+)\s*/\s*\d+\]\s+eta:")  # DINOv2
_LEADING = re.compile(r"^\[\s*(?P<step>\d+)\s*(?:/\s*\d+\s*)?\]")  # "[00020] loss=1.2"
_STEP = re.compile(
    r"(?:^|[^\w.])(?:global[_ ]step|train[_ ]step|iteration|iter|num_updates|update|steps?|batch|s)"
    r"(?:\(train\))?\s*[:=\[]?\s*(?P<step>\d+)(?![\d.])(?:\s*/\s*\d+)?",
    re.IGNORECASE,
)
# Megatron, llm.c, torchtitan, fairseq, mmengine: the first update is step 1.
_ONE_BASED = re.compile(
    r"iteration\s+\d+\s*/|^step\s+\d+/\d+|\bstep:\s*\d+\s+loss:|\bnum_updates\W|\bIter(?:\(train\))?\s+\[|^\[batch=\d+/",
    re.IGNORECASE,
)
_AT_ITERATION = re.compile(
    r"(?P<what>validation|test|eval\w*) loss at (?:the end of training|iteration (?P<step>\d+))", re.I
)
_PAIR = re.compile(
    rf"(?<![\w./@])(?P<name>{_WORD}(?: {_WORD}){{0,3}}?)(?: \(ms\))?\s*[:=]\s*\[?(?P<value>{_NUMBER})(?![\w:/])",
    re.I,
)
_LOOSE = re.compile(
    rf"(?<![\w:=./])(?P<name>(?:(?:val|valid|validation|train|test|eval|lm|mlm|grad|total)[ _])?"
    rf"(?:\w*loss|\w*norm|lr|learning rate|acc\w*(?:@\d+)?|top-?\d|ppl|accuracy))\s+\(?(?P<value>{_NUMBER})(?![\w:/])",
    re.IGNORECASE,
)
_EVALUATED = re.compile(r"acc@\d|val(?:id|idation)?[ _]|test[ _]|hellaswag|eval[ _]", re.IGNORECASE)
_RENAMED = {
    "norm": "grad_norm",  # llm.c
    "trl": "train_loss",
    "tel": "val_loss",
    "eval": "val_accuracy",
    "gnorm": "grad_norm",
}
_NO_SERIES = re.compile(
    r"(?:.*[ _])?(?:step|s|iter|iteration|eta|time|data|mem|memory|epoch|rank|consumed samples|consumed tokens"
    r"|.*\.py|elapsed time per iteration|num_updates|max mem|train_time|step_avg|tok/s|tps|mfu|seed|pid|gpu)",
    re.IGNORECASE,
)


_SMOOTHED = re.compile(rf"{_NUMBER}\s+\(\s*{_NUMBER}", re.IGNORECASE)  # "loss: 1.2 (1.3)"


@dataclass(frozen=True)
class Line:
    """A parsed line. ``step``: None if the line has none. ``epoch``, ``length``: number of the epoch and its steps, if
    ``step`` counts within an epoch. ``counts_from``: the step that the trainer assigns to the first update.
    ``smoothed``: whether the numbers are medians or means over a window. ``samples``: whether ``step`` counts
    samples. A line with a step and no values announces the lines below it."""

    step: int | None
    values: dict[str, float]
    counts_from: int = 0
    smoothed: bool = False
    epoch: int | None = None
    length: int = 0
    samples: bool = False


def parse_line(text: str) -> Line | None:
    """Parse the step and the numbers of a line. None for a line without values of a series."""
    text = _ANSI.sub("", text).strip()
    if not any(c.isdigit() for c in text) and "nan" not in text.lower():
        return None
    inner = _dictionary(text)
    if inner is not None:
        return (
            None if not inner else Line(_whole(inner), {k: v for k, v in inner.items() if not _NO_SERIES.fullmatch(k)})
        )
    at = _AT_ITERATION.search(text)
    if at is not None:
        values = {f"{at['what'].lower()} {k.removesuffix(' value')}": v for k, v in _pairs(text[at.end() :]).items()}
        return Line(int(at["step"]) if at["step"] else None, values, counts_from=1) if values else None
    epoch = _IN_EPOCH.search(text) or _EPOCH_AND_STEP.search(text)
    if epoch is not None and int(epoch["length"]) > 0:
        what = [epoch.groupdict().get(part) or "" for part in ("what", "mode")]
        if any(part.lower() in ("test", "val", "validate", "eval") for part in what):
            return None
        values = _values(text[epoch.end() :])
        counted = {"epoch": int(epoch["epoch"]), "length": int(epoch["length"])}
        smoothed = _SMOOTHED.search(text, epoch.end()) is not None
        samples = _SAMPLES.search(text) is not None
        return Line(int(epoch["place"]), values, smoothed=smoothed, samples=samples, **counted) if values else None
    match = _METRIC_LOGGER.search(text) or _STEP.search(text) or _LEADING.search(text)
    values = _values(text if match is None else text[: match.start()] + " " + text[match.end() :])
    if match is not None and not values:
        return Line(int(match["step"]), {}, counts_from=1)
    if not values:
        return None
    if match is None:
        shown = {k if re.match("val|test|eval", k, re.I) else f"val_{k}": v for k, v in values.items()}
        return Line(None, shown) if _EVALUATED.search(text) else None
    smoothed = match.re is _METRIC_LOGGER
    return Line(int(match["step"]), values, counts_from=1 if _ONE_BASED.search(text) else 0, smoothed=smoothed)


def parse_below(text: str) -> dict[str, float]:
    """The numbers of an indented line below a line that only gives the step, as OLMo and Composer write them."""
    text = _ANSI.sub("", text)
    return _pairs(text.strip()) if text[:1].isspace() else {}


def _values(text: str) -> dict[str, float]:
    loose = {_name(m["name"]): float(m["value"]) for m in _LOOSE.finditer(text)}
    values = {**loose, **_pairs(text)}
    return {name: value for name, value in values.items() if not _NO_SERIES.fullmatch(name)}


def _pairs(text: str) -> dict[str, float]:
    pairs: dict[str, float] = {}
    for match in _PAIR.finditer(text):
        name = _name(match["name"])
        if not _NO_SERIES.fullmatch(name):
            pairs.setdefault(name, float(match["value"]))
    return pairs


def _name(name: str) -> str:
    name = name.strip().strip("|*").strip()
    return _RENAMED.get(name, name)


def _dictionary(text: str) -> dict[str, float] | None:
    """The numbers of a line that is, or ends with, a dictionary in Python or JSON syntax; None for other lines."""
    start = text.find("{")
    if start < 0 or not text.endswith("}"):
        return None
    body = text[start:]
    try:
        parsed: Any = json.loads(body)
    except (ValueError, RecursionError):
        try:
            parsed = ast.literal_eval(re.sub(r"(?<=[:,\[] )(nan|inf|-inf)\b", r"'\1'", body))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    if not isinstance(parsed, dict):
        return None
    numbers: dict[str, float] = {}
    for name, value in parsed.items():
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                numbers[str(name)] = float(value)
            except (ValueError, OverflowError):
                continue
    return numbers


def _whole(values: dict[str, float]) -> int | None:
    for name in ("step", "global_step", "iteration", "iter", "num_updates"):
        value = values.get(name)
        if value is not None and value == int(value):
            return int(value)
    return None
