"""User options for an import, and patterns that select series by name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stabilitylab.errors import LogFormatError
from stabilitylab.metrics import check_goal


@dataclass(frozen=True)
class Metric:
    """A series that the user declares as an evaluation metric. ``percent``: whether its values are percentages."""

    name: str
    percent: bool | None = None
    goal: str | None = None


@dataclass(frozen=True)
class Options:
    """``step``: the column of steps. ``grads``: a pattern of gradient-norm series. ``loss``: the training loss.
    ``metrics``: the evaluation metrics. ``pattern``: a regular expression for the lines of a text log. ``strict``:
    reject a log with unreadable rows."""

    step: str | None = None
    grads: str | None = None
    loss: str | None = None
    metrics: tuple[Metric, ...] = ()
    pattern: str | None = None
    strict: bool = False


def parse_metric(text: str) -> Metric:
    """Parse ``val_acc:percent:max``. Colons within the name are kept."""
    percent: bool | None = None
    goal: str | None = None
    name = text
    while True:
        head, colon, word = name.rpartition(":")
        if not colon or not head or word not in ("percent", "min", "max"):
            break
        name = head
        if word == "percent":
            percent = True
        else:
            goal = word
    if not name.strip():
        raise LogFormatError(f"--metric {text!r} contains no name of a series; write NAME[:percent][:min]")
    check_goal(name, goal)
    return Metric(name, percent, goal)


def layer_pattern(text: str, option: str = "--grads") -> re.Pattern[str]:
    """Compile a regular expression with a group ``layer``, or a name in which ``*`` stands for the layer."""
    if "(?P<" not in text and not text.endswith(")") and "(" not in text:
        head, star, tail = text.partition("*")
        layer = "(?P<layer>.+)" if star else "(?P<layer>)"
        return re.compile(re.escape(head) + layer + re.escape(tail).replace(r"\*", ".*"))
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise LogFormatError(f"{option} {text!r} is not a valid regular expression: {error}") from None
    if "layer" not in pattern.groupindex:
        raise LogFormatError(f"{option} {text!r} needs a group named layer: (?P<layer>.+)")
    return pattern
