"""Parameter -> layer name -> depth. The one place that knows what "first" and "last" are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

# Online branch only: the momentum encoder takes no gradient.
_WRAPPERS = ("base_encoder", "module", "_orig_mod")
_HEADS = ("projector", "predictor", "prototypes")
_TOKENS = ("cls_token", "pos_embed", "reg_token")
# timm registers tokens before the patch projection; by depth they come after it.
_INPUT_ORDER = {"patch_embed": 0, "conv1": 0, "tokens": 1, "bn1": 1}


@dataclass(frozen=True)
class Layer:
    """Parameters that are recorded as one series. ``depth`` 0 is nearest to the input."""

    name: str
    depth: int
    parameters: tuple[nn.Parameter, ...]

    @property
    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters)

    @property
    def trainable(self) -> bool:
        return any(p.requires_grad for p in self.parameters)


def without_wrappers(path: str) -> str:
    """``_orig_mod.base_encoder.blocks.0`` -> ``blocks.0``: what compiling, DDP and the method put in front is gone."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def layer_name(parameter: str, granularity: str = "block") -> str:
    """The layer that a parameter belongs to: ``base_encoder.blocks.0.attn.qkv.weight`` -> ``blocks.0`` at
    ``block``, ``blocks.0.attn.qkv`` at ``module``, the name without wrappers at ``param``."""
    parts = without_wrappers(parameter).split(".")
    if granularity == "param":
        return ".".join(parts)
    if parts[0] in _TOKENS:
        return "tokens"
    if granularity == "module":
        return ".".join(parts[:-1]) or parts[0]
    if parts[0] in _HEADS:
        return parts[0]
    for index, part in enumerate(parts[:-1]):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return parts[0]


def group_layers(named_parameters: Iterable[tuple[str, nn.Parameter]], granularity: str = "block") -> list[Layer]:
    """Group parameters into layers, ordered from input to output.

    Parameters fixed by construction (a sin-cos embedding, a momentum encoder) belong to no layer unless
    their layer also holds others; a layer that a mitigation froze is listed as not trainable.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        top = name.split(".")[0]
        if top.startswith("momentum_") or (not parameter.requires_grad and name.split(".")[-1] in _TOKENS):
            continue
        groups.setdefault(layer_name(name, granularity), []).append(parameter)
    return [Layer(name, depth, tuple(groups[name])) for depth, name in enumerate(depth_order(list(groups)))]


def depth_order(names: Sequence[str]) -> list[str]:
    """Layer names from input to output, as far as names tell; the order given decides the rest."""
    return sorted(names, key=lambda name: (_rank(name), list(names).index(name)))


def _rank(name: str) -> int:
    first = name.split(".")[0]
    if first in _HEADS:
        return 3 + _HEADS.index(first)
    if first in _TOKENS:
        return 1
    return _INPUT_ORDER.get(first, 2)
