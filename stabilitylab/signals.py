"""Signals: the quantities that can be recorded per layer, each with one declaration.

The store's columns, the configuration, the recorder, the Run handle and the documentation use these declarations. A new
signal is an entry in `SIGNALS` and a function that measures it (see `stabilitylab.recording.measurement`). This module
does not import torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from stabilitylab.registry import Registry

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = ("iteration", "layer_id")


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One number per layer and iteration.

    ``name``: its column in ``layer_stats``. ``help``: a one-line description. ``unit``: ``"1"`` if dimensionless.
    ``low``, ``high``: range of its finite values, which may be negative. ``source``: what it is computed from. A signal
    of the ``gradient`` is missing if a layer has none; a signal of the ``weights`` is always available for trainable
    layers; a signal of the ``forward`` pass is measured by hooks. ``needs_optimizer``: whether it reads the state of
    the optimizer. ``flags_nonfinite``: whether it is positive for non-finite gradients; it is kept if a loss scaler
    skips the update, while the other signals of that gradient are stored as missing. ``measure``: for signals of
    plugins, the function or `Measurement` class that measures it, as an object or as ``"package.module:name"`` (which
    avoids importing torch). The signals of this package register theirs by name.

    Examples:
        >>> SIGNALS["grad_norm"].unit
        '1'
        >>> Signal(name="Grad Norm", help="")
        Traceback (most recent call last):
        ...
        ValueError: the name of a signal must consist of lower-case letters, digits and underscores, not 'Grad Norm'
    """

    name: str
    help: str
    unit: str = "1"
    low: float = 0.0
    high: float = math.inf
    source: Literal["gradient", "weights", "forward"] = "gradient"
    needs_optimizer: bool = False
    flags_nonfinite: bool = False
    storage: Literal["FLOAT", "DOUBLE"] = "FLOAT"
    measure: str | Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in _RESERVED:
            raise ValueError(
                f"the name of a signal must consist of lower-case letters, digits and underscores, not {self.name!r}"
            )
        if not self.low < self.high:
            raise ValueError(f"signal {self.name}: low {self.low:g} is not below high {self.high:g}")

    @property
    def signed(self) -> bool:
        """Whether values may be negative. Such signals are drawn on a linear axis, the others on a logarithmic axis."""
        return self.low < 0


def _check(name: str, value: Any) -> None:
    if not isinstance(value, Signal):
        raise TypeError(f"expected a stabilitylab.signals.Signal, not a {type(value).__name__}")
    if value.name != name:
        raise ValueError(f"it declares the name {value.name!r}")
    if value.measure is None:
        raise ValueError("the function that measures it is missing: Signal(..., measure='package.module:function')")


_DECLARED = (
    Signal(name="grad_norm", help="L2 norm of the gradient, before any clipping"),
    Signal(name="grad_max", help="largest absolute entry of the gradient"),
    Signal(name="weight_norm", help="L2 norm of the weights", source="weights"),
    Signal(
        name="adam_rms",
        help="RMS_t of AdamW, an early warning of spikes (arXiv 2304.13013); missing without a second moment",
        needs_optimizer=True,
    ),
    Signal(
        name="update_ratio",
        help="L2 norm of the update divided by that of the weights before it; keeps a copy of the weights",
        source="weights",
    ),
    Signal(
        name="nonfinite",
        help="share of the gradient's entries that are NaN or infinite",
        high=1.0,
        flags_nonfinite=True,
    ),
    Signal(name="activation_max", help="largest absolute activation", source="forward"),
    Signal(name="attention_max", help="largest absolute attention logit", source="forward"),
    Signal(
        name="attention_entropy",
        help="entropy of the attention weights, in nats: mean over queries, minimum over heads",
        unit="nat",
        source="forward",
    ),
    Signal(
        name="grad_cosine",
        help="cosine similarity to the gradient of the previous iteration; keeps a copy of the gradients",
        low=-1.0,
        high=1.0,
    ),
)

SIGNALS: Registry[Signal] = Registry(
    "signal", {signal.name: signal for signal in _DECLARED}, group="stabilitylab.signals", check=_check
)
BUILT_IN = tuple(signal.name for signal in _DECLARED)
"""The signals that have a column in every store."""

DEFAULT = ("grad_norm", "grad_max")
"""The signals that `stabilitylab.record` measures by default."""
