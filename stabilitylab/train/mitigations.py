"""Mitigations: name -> what it does. A new one is a function and a line.

A mitigation is written ``name`` or ``name:value``. ``model`` ones change the method before the optimizer is
made; ``gradient`` ones change gradients after they are recorded and before the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stabilitylab.config import ConfigError, check_choice
from stabilitylab.methods.base import Method


@dataclass(frozen=True)
class Mitigation:
    """``apply(method, value)``; ``value`` names the number after the colon, if the mitigation takes one."""

    apply: Callable[[Method, float | None], Tensor | None]
    stage: str
    value: str = ""
    about: str = ""


def patch_projection(method: Method) -> nn.Module:
    """The patch projection of a ViT, the first convolution of a ResNet."""
    encoder = method.base_encoder
    return encoder.patch_embed.proj if hasattr(encoder, "patch_embed") else encoder.conv1  # type: ignore[union-attr,return-value]


def freeze_patch(method: Method, value: float | None) -> None:
    patch_projection(method).requires_grad_(False)


def clip_patch(method: Method, value: float | None) -> Tensor:
    assert value is not None
    return nn.utils.clip_grad_norm_(patch_projection(method).parameters(), value)


def clip_global(method: Method, value: float | None) -> Tensor:
    assert value is not None
    return nn.utils.clip_grad_norm_(method.parameters(), value)


MITIGATIONS: dict[str, Mitigation] = {
    "frozen-patch": Mitigation(
        freeze_patch, "model", about="the patch projection keeps its random initialisation (the paper's cure)"
    ),
    "clip-patch": Mitigation(clip_patch, "gradient", "T", "clips the patch projection's gradient to L2 norm T"),
    "clip-global": Mitigation(clip_global, "gradient", "T", "clips the whole gradient to L2 norm T"),
}


def parse_mitigations(names: Iterable[str]) -> list[tuple[str, Mitigation, float | None]]:
    """``["frozen-patch", "clip-patch:0.01"]`` -> entries with their values. ``none`` stands for nothing."""
    parsed = []
    for text in names:
        if text == "none":
            continue
        name, colon, raw = text.partition(":")
        entry = MITIGATIONS[check_choice("mitigation", name, [*MITIGATIONS, "none"])]
        if bool(colon) != bool(entry.value):
            form = f"{name}:{entry.value}" if entry.value else name
            raise ConfigError(f"mitigation {text!r} is written {form}")
        parsed.append((text, entry, _positive(text, raw) if colon else None))
    return parsed


def _positive(text: str, raw: str) -> float:
    try:
        value = float(raw)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise ConfigError(f"mitigation {text!r}: {raw!r} is not a positive number")
    return value


class AppliedMitigations:
    """The mitigations of one run. Creating it applies the ``model`` stage."""

    def __init__(self, method: Method, names: Iterable[str]) -> None:
        self.method = method
        self.entries = parse_mitigations(names)
        for _, entry, value in self.entries:
            if entry.stage == "model":
                entry.apply(method, value)

    @torch.no_grad()
    def before_update(self) -> None:
        """The ``gradient`` stage."""
        for _, entry, value in self.entries:
            if entry.stage == "gradient":
                entry.apply(self.method, value)
