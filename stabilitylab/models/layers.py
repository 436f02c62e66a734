"""Parameter -> layer name -> depth. The one place that knows what "first" and "last" are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

# Online branch only: the momentum encoder takes no gradient.
_WRAPPERS = ("base_encoder", "module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_HEADS = ("projector", "predictor", "prototypes")
_TOKENS = ("cls_token", "pos_embed", "reg_token")
# timm registers tokens before the patch projection; by depth they come after it.
_INPUT_ORDER = {"patch_embed": 0, "conv1": 0, "stem": 0, "embeddings": 0, "tokens": 1, "bn1": 1}

Path = tuple[str, ...]


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


def containers(modules: Iterable[Path]) -> frozenset[Path]:
    """The modules that hold a network rather than being a layer of one: those that own a list of blocks
    (``vit`` in ``vit.layers.0``), and those that everything is in (``model`` in a Lightning module)."""
    paths = sorted(set(modules))
    shared = 0
    if len(paths) > 1:  # sorted: what the first and the last share, all share
        shared = next((i for i, (a, b) in enumerate(zip(paths[0], paths[-1], strict=False)) if a != b), len(paths[0]))
    found = {paths[0][:length] for length in range(1, shared + 1)} if paths else set()
    for path in paths:
        block = next((i for i, part in enumerate(path) if i >= shared and part.isdigit()), 0)
        found.update(path[:length] for length in range(1, block))
    return frozenset(found)


def layer_name(parameter: str, granularity: str = "block", inside: frozenset[Path] = frozenset()) -> str:
    """The layer that a parameter belongs to: ``base_encoder.blocks.0.attn.qkv.weight`` -> ``blocks.0`` at
    ``block``, ``blocks.0.attn.qkv`` at ``module``, the name without wrappers at ``param``. What lies in the
    containers ``inside`` gets one part more: ``model.patch_embed``."""
    parts = tuple(without_wrappers(parameter).split("."))
    top = _top(parts, inside)
    if granularity == "param":
        return ".".join(parts)
    if top[-1] in _TOKENS:
        return ".".join((*top[:-1], "tokens"))
    if granularity == "module":
        return ".".join(parts[:-1]) or parts[0]
    if top[-1] in _HEADS:
        return ".".join(top)
    for index, part in enumerate(parts[:-1]):
        if part.isdigit() and parts[: index + 1] not in inside:
            return ".".join(parts[: index + 1])
    return ".".join(top)


def group_layers(named_parameters: Iterable[tuple[str, nn.Parameter]], granularity: str = "block") -> list[Layer]:
    """Group parameters into layers, ordered from input to output.

    Parameters fixed by construction (a sin-cos embedding, a momentum encoder) belong to no layer unless
    their layer also holds others; a layer that a mitigation froze is listed as not trainable.
    """
    online = {}
    for name, parameter in named_parameters:
        parts = name.split(".")
        fixed = not parameter.requires_grad and parts[-1] in _TOKENS
        if not fixed and not any(part.startswith("momentum_") for part in parts):
            online[name] = parameter
    inside = containers(tuple(without_wrappers(name).split("."))[:-1] for name in online)
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in online.items():
        groups.setdefault(layer_name(name, granularity, inside), []).append(parameter)
    return [Layer(name, depth, tuple(groups[name])) for depth, name in enumerate(depth_order(list(groups)))]


def depth_order(names: Sequence[str]) -> list[str]:
    """Layer names from input to output, as far as names tell; the order given decides the rest."""
    inside = _holders(names)
    return sorted(names, key=lambda name: _rank(name, inside))  # stable


def names_tell_the_order(names: Sequence[str]) -> bool:
    """Whether the first name is one that stands at the input of a network."""
    return bool(names) and _rank(names[0], _holders(names)) < _UNKNOWN


_UNKNOWN = 2
"""The rank of a layer whose name does not tell where it stands."""


def _holders(names: Sequence[str]) -> frozenset[Path]:
    return containers(tuple(name.split(".")) for name in names)


def _top(parts: Path, inside: frozenset[Path]) -> Path:
    """The parts up to the first that is no container; up to a head, whatever the head holds."""
    for index, part in enumerate(parts):
        if part in _HEADS or parts[: index + 1] not in inside:
            return parts[: index + 1]
    return parts


def _rank(name: str, inside: frozenset[Path]) -> int:
    for part in _top(tuple(name.split(".")), inside):
        if part in _HEADS:
            return _UNKNOWN + 1 + _HEADS.index(part)
        if part in _TOKENS:
            return 1
        if part in _INPUT_ORDER:
            return _INPUT_ORDER[part]
    return _UNKNOWN
