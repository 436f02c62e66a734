"""The definition of a mitigation and the four stages at which it can act."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stabilitylab.registry import located

if TYPE_CHECKING:
    from torch import Tensor


State = dict[str, "Tensor"]
"""The state of a mitigation between iterations. It starts empty and is saved in checkpoints."""


@dataclass(frozen=True)
class Mitigation:
    """A mitigation. ``about`` describes it; ``value`` names the number after the colon, if it takes one; ``patch``: it
    needs a ViT's patch projection. Exactly one stage must be given:

    - ``configure(config, value)`` returns a changed configuration;
    - ``model(method, value)`` changes the model in place, including the momentum encoder;
    - ``gradient(method, value, state)`` changes gradients and returns the factor by which it scaled their norm (1 if
      unchanged);
    - ``update(method, value, state)`` returns whether to skip this update.

    A stage is a function or ``"package.module:function"``, so that listing mitigations does not import torch.
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
    """Raise TypeError or ValueError if ``entry`` is not a valid mitigation."""
    if not isinstance(entry, Mitigation):
        raise TypeError(f"it must be a Mitigation, not a {type(entry).__name__}")
    if sum(getattr(entry, stage) is not None for stage in STAGES) != 1:
        raise ValueError(f"it must have exactly one of {', '.join(STAGES)}")


def loaded(entry: Mitigation) -> Mitigation:
    """The mitigation with import paths replaced by the functions."""
    return replace(entry, **{stage: located(getattr(entry, stage)) for stage in STAGES})


@dataclass(frozen=True)
class ParsedMitigation:
    """A mitigation with its value, parsed from the text in a configuration."""

    text: str
    name: str
    entry: Mitigation
    value: float | None
