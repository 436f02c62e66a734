"""The buffer of the recorder."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from stabilitylab.recording.measurement import Measured

Scalar = float | int | Tensor


@dataclass
class Buffer:
    """Everything recorded since the last flush."""

    stats: list[tuple[int, Measured]] = field(default_factory=list)
    rows: list[dict[str, Scalar]] = field(default_factory=list)
    evals: list[tuple[int, str, float, int]] = field(default_factory=list)
    scalars: list[dict[str, Scalar]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of the scalars
    skips: list[tuple[int, Tensor]] = field(default_factory=list)
