"""Group parameters into layers and order the layers by depth. The definition of "layer", "first" and "last"."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from stabilitylab.models.blocks import WRAPPERS, Partition, recurrent_layers

# Parts of a path that are left out of layer names. The base encoder is the network itself.
_UNNAMED = (*WRAPPERS, "base_encoder")
_HEADS = ("projector", "predictor", "prototypes")
_TOKENS = re.compile(
    r"((cls|class|reg|register|dist|mask|query|sep)_?(token|embedding)s?|.*(pos|position|mask|masked)_(\w+_)?emb.*"
    r"|posemb.*|.*_pos|tokens?)(_?\d+)?"
)
# timm registers tokens before the patch projection, but the network uses them after it.
_INPUT_ORDER = {"patch_embed": 0, "conv1": 0, "stem": 0, "embeddings": 0, "tokens": 1}
_UNKNOWN = 2
"""Rank of a layer whose name does not reveal its position."""


@dataclass(frozen=True)
class Layer:
    """Parameters that are recorded as one series. ``depth`` 0 is closest to the input. ``path`` is the path of the
    layer's module in the model, wrappers included, or empty if no single module owns the layer."""

    name: str
    depth: int
    parameters: tuple[nn.Parameter, ...]
    path: str = ""

    @property
    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters)

    @property
    def trainable(self) -> bool:
        return any(p.requires_grad for p in self.parameters)


def without_wrappers(path: str) -> str:
    """Remove the parts of a path added by torch.compile, DDP and the method: ``_orig_mod.base_encoder.blocks.0`` ->
    ``blocks.0``."""
    return ".".join(part for part in path.split(".") if part not in _UNNAMED)


def group_layers(model: nn.Module, granularity: str = "block") -> list[Layer]:
    """The layers of a model, ordered from input to output as far as their names reveal it.

    ``granularity``: ``block`` (each innermost repeated block, and each module outside the blocks), ``module`` (each
    module that owns parameters) or ``param`` (each parameter). A shared parameter is counted once, where it is
    registered first. Parameters fixed by construction (a sin-cos embedding, a momentum encoder) are left out unless
    their layer also has other parameters; a frozen layer is listed as not trainable.

    >>> from torch import nn
    >>> block = lambda: nn.TransformerEncoderLayer(8, 2, 16)
    >>> model = nn.ModuleDict({"embed": nn.Linear(4, 8), "blocks": nn.ModuleList([block(), block()])})
    >>> [layer.name for layer in group_layers(model)]
    ['embed', 'blocks.0', 'blocks.1']
    """
    groups: dict[tuple[str, str], list[nn.Parameter]] = {}
    for parameter_name, parameter, name, path in _assigned(model, granularity):
        last = parameter_name.rpartition(".")[2]
        momentum = any(part.startswith("momentum_") for part in parameter_name.split("."))
        if parameter.requires_grad or not (momentum or _TOKENS.fullmatch(last)):
            groups.setdefault((name, path), []).append(parameter)
    names = _distinct(list(groups), model)
    by_name = {names[key]: (key[1], parameters) for key, parameters in groups.items()}
    return [
        Layer(name, depth, tuple(by_name[name][1]), by_name[name][0])
        for depth, name in enumerate(depth_order(list(by_name)))
    ]


def depth_order(names: Sequence[str]) -> list[str]:
    """Sort layer names from input to output as far as the names reveal it; otherwise keep the given order."""
    return sorted(names, key=_rank)  # stable


def is_head(name: str) -> bool:
    """Whether a layer's name marks it as a projection or prediction head of a method."""
    return any(part in _HEADS for part in name.split("."))


def is_tokens(name: str) -> bool:
    """Whether a layer consists of parameters that the network owns directly: tokens, position embeddings."""
    return name.rpartition(".")[2] == "tokens"


def _assigned(model: nn.Module, granularity: str) -> Iterator[tuple[str, nn.Parameter, str, str]]:
    """Yield (parameter name, parameter, layer name, layer path) for each parameter; names still include wrappers."""
    leaves = Partition(model).leaves if granularity == "block" else {}
    recurrent = {
        f"{path}.{name}" if path else name: f"{path}.{layer}" if path else layer
        for path, module in leaves.items()
        for layer, names in recurrent_layers(module)
        for name in names
    }
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        owner = ".".join(parts[:-1])
        leaf = next((p for n in range(len(parts), 0, -1) if (p := ".".join(parts[:n])) in leaves), None)
        if granularity == "param":
            yield name, parameter, name, ""
        elif name in recurrent:
            yield name, parameter, recurrent[name], ""
        elif leaf is not None and isinstance(leaves[leaf], nn.ParameterList | nn.ParameterDict):
            yield name, parameter, name, ""
        elif leaf is not None:
            yield name, parameter, leaf, leaf
        elif "" in leaves and type(model).__module__.startswith("torch.nn."):  # the model is a Linear or the like
            yield name, parameter, type(model).__name__.lower(), ""
        elif "" in leaves:  # the model is one layer
            yield name, parameter, owner or parts[0], owner
        elif _TOKENS.fullmatch(parts[-1]):
            yield name, parameter, ".".join([*parts[:-1], "tokens"]), ""
        elif granularity == "module" and owner:
            yield name, parameter, owner, owner
        else:
            yield name, parameter, name, ""


def _distinct(keys: list[tuple[str, str]], model: nn.Module) -> dict[tuple[str, str], str]:
    """Layer names without wrappers, or with them if two layers would otherwise share a name."""
    prefix = "base_model.model." if hasattr(model, "peft_config") else ""
    short = {key: without_wrappers(key[0].removeprefix(prefix)) or key[0] for key in keys}
    count: dict[str, int] = {}
    for name in short.values():
        count[name] = count.get(name, 0) + 1
    return {key: name if count[name] == 1 else key[0] for key, name in short.items()}


def _rank(name: str) -> int:
    """Rank by the first part of the name that marks a head or an input layer. Names inside a block have no rank."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part in _HEADS:
            return _UNKNOWN + 1 + _HEADS.index(part)
        if part.isdigit() and 0 < index < len(parts) - 1:
            return _UNKNOWN
        if part in _INPUT_ORDER:
            return _INPUT_ORDER[part]
    return _UNKNOWN
