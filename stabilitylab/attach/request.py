"""Validation of the arguments of `stabilitylab.record`: signals, layers, numbers."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from stabilitylab.attach.timing import MEASURES
from stabilitylab.errors import ConfigError, RecordError
from stabilitylab.models.layers import Layer, group_layers
from stabilitylab.signals import SIGNALS


def check_signals(signals: Sequence[str], optimizer: Optimizer | None) -> None:
    """Raise RecordError for an unknown signal, or a signal without the optimizer that it needs."""
    if not signals:
        raise RecordError(f"signals= is empty; choose from {', '.join(SIGNALS)}")
    try:
        chosen = [SIGNALS.choose(name) for name in signals]
    except ConfigError as error:
        raise RecordError(str(error)) from None
    needing = [signal.name for signal in chosen if signal.needs_optimizer]
    if needing and optimizer is None:
        raise RecordError(f"{needing[0]} reads the optimizer's state: record(model, optimizer, ...)")
    keeps = optimizer is None or any("betas" in g or "eps" in g for g in optimizer.param_groups)
    if "adam_rms" in needing and not keeps:
        raise RecordError(f"adam_rms needs the second moment of Adam, which {type(optimizer).__name__} does not have")


def check_options(
    *,
    every: int,
    flush_every: int,
    flush_seconds: float,
    resume: bool | int,
    run: str | None,
    config: Any,
    measure: str,
) -> None:
    if measure not in MEASURES:
        raise RecordError(f"measure={measure!r} is not one of {', '.join(MEASURES)}")
    if every < 1 or flush_every < 1 or flush_seconds < 0:
        raise RecordError("every= and flush_every= must be at least 1, and flush_seconds= at least 0")
    if resume < 0:
        raise RecordError(f"resume={resume} must be True or the iteration to continue at, 0 or more")
    if resume is not False and run is None:
        raise RecordError("resume= needs the name of the run; set run=...")
    try:
        json.dumps(dict(config or {}), default=str)
    except (TypeError, ValueError) as error:
        raise RecordError(f"config= cannot be saved as JSON: {error}") from None


def chosen_layers(
    model: nn.Module, granularity: str, include: str | Iterable[str], exclude: str | Iterable[str]
) -> list[Layer]:
    """The layers to record, ordered from input to output as far as their names show."""
    if granularity not in ("block", "module", "param"):
        raise RecordError(f"granularity must be block, module or param, not {granularity!r}")
    if any(isinstance(p, nn.UninitializedParameter) for p in model.parameters()):
        raise RecordError("the model has lazy modules without parameters; run one batch through it before record()")
    wanted = [include] if isinstance(include, str) else list(include)
    unwanted = [exclude] if isinstance(exclude, str) else list(exclude)
    layers = [
        layer
        for layer in group_layers(model, granularity)
        if any(fnmatch.fnmatchcase(layer.name, p) for p in wanted)
        and not any(fnmatch.fnmatchcase(layer.name, p) for p in unwanted)
    ]
    if not any(layer.trainable for layer in layers):
        raise RecordError("the model has no trainable parameter to record; unfreeze one, or widen include=")
    return [replace(layer, depth=depth) for depth, layer in enumerate(layers)]


def replaced_since(model: nn.Module | None, parameters: Sequence[Tensor]) -> str:
    """A message about trainable parameters that ``model`` has got since ``parameters`` were all it had; else empty."""
    known = set(map(id, parameters))
    new = [] if model is None else [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in known]
    if not new:
        return ""
    return (
        f"{len(new)} parameters of the model are not recorded (the first is {new[0]}), because they were created or "
        "replaced after record(); call record() when the model is complete"
    )


def in_order(layers: list[Layer], names: list[str]) -> list[Layer]:
    """``layers`` in the order of ``names``, which must contain each layer exactly once."""
    have = {layer.name: layer for layer in layers}
    twice = [name for name in names if names.count(name) > 1]
    wrong = [name for name in names if name not in have] + [name for name in have if name not in names] + twice
    if wrong:
        raise RecordError(f"depth= must name every layer once; check {wrong[0]!r}; the layers are {', '.join(have)}")
    return [replace(have[name], depth=depth) for depth, name in enumerate(names)]
