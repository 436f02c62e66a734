"""What a mitigation is, and the four stages at which it may act."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from stabilitylab.config import Config
from stabilitylab.methods.base import Method

State = dict[str, Tensor]
"""What a mitigation remembers between iterations. It starts empty and is part of a checkpoint."""


@dataclass(frozen=True)
class Mitigation:
    """``value`` names the number after the colon, if the mitigation takes one. ``patch``: it needs a ViT's patch
    projection. Exactly one stage is given:

    ``configure(config, value)`` gives another configuration; ``model(method, value)`` changes it in place, the
    momentum encoder included; ``gradient(method, value, state)`` changes gradients and returns by what factor the norm
    of what it looks after has shrunk (1: untouched); ``update(method, value, state)`` is true where this update is to
    be skipped.
    """

    about: str
    value: str = ""
    configure: Callable[[Config, float | None], Config] | None = None
    model: Callable[[Method, float | None], None] | None = None
    gradient: Callable[[Method, float | None, State], Tensor] | None = None
    update: Callable[[Method, float | None, State], Tensor] | None = None
    patch: bool = False


@dataclass(frozen=True)
class Given:
    """A mitigation as a run names it."""

    text: str
    name: str
    entry: Mitigation
    value: float | None
