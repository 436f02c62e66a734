"""What a mitigation is, and the four stages at which it may act."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stabilitylab.registry import located

if TYPE_CHECKING:
    from torch import Tensor


State = dict[str, "Tensor"]
"""What a mitigation remembers between iterations. It starts empty and is part of a checkpoint."""


@dataclass(frozen=True)
class Mitigation:
    """``value`` names the number after the colon, if the mitigation takes one. ``patch``: it needs a ViT's patch
    projection. Exactly one stage is given:

    ``configure(config, value)`` gives another configuration; ``model(method, value)`` changes it in place, the
    momentum encoder included; ``gradient(method, value, state)`` changes gradients and returns by what factor the norm
    of what it looks after has shrunk (1: untouched); ``update(method, value, state)`` is true where this update is to
    be skipped. A stage is a function, or ``"package.module:function"``, so that listing mitigations imports no torch.
    """

    about: str
    value: str = ""
    configure: Any = None
    model: Any = None
    gradient: Any = None
    update: Any = None
    patch: bool = False


STAGES = ("configure", "model", "gradient", "update")


def check_mitigation(name: str, entry: Any) -> None:
    """TypeError or ValueError for what is not a mitigation."""
    if not isinstance(entry, Mitigation):
        raise TypeError(f"it is not a Mitigation but a {type(entry).__name__}")
    if sum(getattr(entry, stage) is not None for stage in STAGES) != 1:
        raise ValueError(f"it must have exactly one of {', '.join(STAGES)}")


def loaded(entry: Mitigation) -> Mitigation:
    """The mitigation with its function in place of the function's name."""
    return replace(entry, **{stage: located(getattr(entry, stage)) for stage in STAGES})


@dataclass(frozen=True)
class Given:
    """A mitigation as a run names it."""

    text: str
    name: str
    entry: Mitigation
    value: float | None
