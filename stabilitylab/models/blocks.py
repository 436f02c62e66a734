"""Find the blocks of a network in its module tree.

A *stack* is a numbered series of modules of one class: the children of a ModuleList or Sequential, or siblings such as
``layer1`` to ``layer4``. A *block* is an item of the innermost stack whose items contain at least two weight matrices
and a normalisation or a spatial convolution. This excludes the parts of a block: a convolution with its norm, the two
Linears of an MLP, attention heads, experts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from torch import nn

WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module")
"""Attributes in which DDP, torch.compile, activation checkpointing, FSDP1 and Fabric store the module they wrap."""
_SAME = ("_original_module",)
"""Attributes in which a wrapper (Fabric's) stores the wrapped module a second time."""
_WHOLE = re.compile(r"project(or|ion)|predict(or|ion)|prototype|patch_embed$|stem$|probe|embeddings?$|embedder$")
"""Heads and input projections: one layer each, unless they contain a stack of blocks."""
_PART_OF_BLOCK = re.compile(r"att|mlp|ffn?\d*$|ffns?$|expert|heads?$|branch|^convs?$|conv$|norm|adapter|lora")
"""Names of parts of a block that have the same class and run in parallel."""
_NUMBERED = re.compile(r"(.*?)(\d+)[a-z]?")
_CHAIN = 5
"""A plain Sequential with this many weight matrices is a network, not a stem or a head."""
_LARGE = 0.4
"""A module with more than this share of all parameters is split unless it is a block."""


def unwrapped(path: str, module: nn.Module) -> tuple[str, nn.Module]:
    """The module inside any wrappers, and its path."""
    while True:
        children = dict(module.named_children())
        name = next((name for name in WRAPPERS if name in children), None)
        own = [
            child
            for child in children
            if child not in (name, *_SAME) and any(True for _ in children[child].parameters())
        ]
        if name is None or own or any(True for _ in module.parameters(recurse=False)):
            return path, module
        path, module = _join(path, name), children[name]


class Partition:
    """Splits a model into layers. ``leaves`` maps the path of each module that is one layer to the module, in order of
    registration. Modules above the leaves contain layers; parameters that such a module owns directly (class tokens, a
    temperature) belong to no leaf."""

    def __init__(self, model: nn.Module) -> None:
        self.leaves: dict[str, nn.Module] = {}
        self._matrices: dict[int, int] = {}
        self._full: dict[int, bool] = {}
        self._children: dict[int, list[tuple[str, str, nn.Module]]] = {}
        self._size = max(1, sum(p.numel() for p in model.parameters()))
        path, root = unwrapped("", model)
        self._has_blocks = self._holds_stack(root, "", inside=False)
        self._stages = {
            type(module)
            for module in root.modules()
            if module is not root and not _is_container(module) and self._holds_stack(module, "", inside=True)
        }
        if self._parametric(root):
            self._split(path, root)
        else:
            self.leaves[path] = root

    def _split(self, path: str, holder: nn.Module) -> None:
        children = self._parametric(holder)
        opened = {name: self._opens(name, child, holder) for name, _, child in children}
        # Stages of one series are treated alike: a stage with a single block is opened if its neighbour is.
        for members in _series(children).values():
            kinds = {_kind(child) for name, child in members if opened[name]}
            for name, child in members:
                opened[name] |= _kind(child) in kinds and bool(self._parametric(child))
        for name, inner, child in children:
            where = _join(path, name) + inner
            if opened[name]:
                self._split(where, child)
            else:
                self.leaves[where] = child

    def _opens(self, name: str, child: nn.Module, holder: nn.Module) -> bool:
        """Whether ``child`` contains several layers; otherwise it is one layer."""
        parts = self._parametric(child)
        if not parts or isinstance(child, nn.MultiheadAttention):
            return False
        numbered = _NUMBERED.fullmatch(name) is not None
        item = numbered and _is_container(holder)
        sibling = numbered and not item
        if type(child) in self._stages and not _is_container(child):
            return True
        if self._holds_stack(child, name, inside=item or sibling, few=2 if sibling else 3):
            return True
        if _WHOLE.search(name):
            return False
        if item:
            return not self._has_blocks and isinstance(child, nn.ModuleList)
        alone = len(self._parametric(holder)) == 1
        if isinstance(child, nn.ModuleList) or type(child) is nn.ModuleDict:
            return True
        if type(child) is nn.Sequential:
            composite = Counter(type(c) for _, _, c in parts if self._parametric(c) and self.matrices(c) > 1)
            return (
                alone
                or not self._has_blocks
                or self.matrices(child) >= _CHAIN
                or self._share(child) > _LARGE
                or max(composite.values(), default=0) > 1
            )
        if alone or self._share(child) > _LARGE:
            return not numbered or not self._is_full(child)
        if self._has_blocks or sibling:
            return False
        return any(len(members) > 1 for members in _series(parts).values()) or not self._is_full(child)

    def _holds_stack(self, module: nn.Module, name: str, *, inside: bool, few: int = 3) -> bool:
        """Whether ``module`` contains a stack of blocks. ``inside``: it may itself be a block, whose parts repeat too;
        then at least ``few`` numbered siblings make a stack."""
        children = self._parametric(module)
        container = _is_container(module)
        for prefix, members in _series(children).items():
            alike = Counter(type(child) for _, child in members if self._is_full(child))
            most = max(alike.values(), default=0)
            if not inside:
                if most >= (1 if container else 2):
                    return True
            elif not _PART_OF_BLOCK.search(prefix.rstrip("_") or name) and most >= (2 if container else few):
                return True
        return any(
            self._holds_stack(child, inner, inside=inside)
            for inner, _, child in children
            if not inside or _is_container(child) or not _PART_OF_BLOCK.search(inner)
        )

    def _is_full(self, module: nn.Module) -> bool:
        key = id(module)
        if key not in self._full:
            parts = self._parametric(module)
            block = bool(parts) and (type(module) is nn.Sequential) <= any(self._is_full(c) for _, _, c in parts)
            self._full[key] = block and not isinstance(module, nn.ModuleList | nn.ModuleDict) and self._works(module)
        return self._full[key]

    def _works(self, module: nn.Module) -> bool:
        return self.matrices(module) > 1 and _mixes(module)

    def _share(self, module: nn.Module) -> float:
        return sum(p.numel() for p in module.parameters()) / self._size

    def matrices(self, module: nn.Module) -> int:
        """Number of parameters with at least two dimensions larger than 1."""
        key = id(module)
        if key not in self._matrices:
            self._matrices[key] = sum(sum(n > 1 for n in p.shape) > 1 for p in module.parameters())
        return self._matrices[key]

    def _parametric(self, module: nn.Module) -> list[tuple[str, str, nn.Module]]:
        """(name, path inside its wrappers, module) of each child with parameters."""
        key = id(module)
        if key not in self._children:
            modules = []
            for name, child in module.named_children():
                if name != "parametrizations" and any(True for _ in child.parameters()):
                    inner, bare = unwrapped("", child)
                    modules.append((name, f".{inner}" if inner else "", bare))
            self._children[key] = modules
        return self._children[key]


def _series(children: list[tuple[str, str, nn.Module]]) -> dict[str, list[tuple[str, nn.Module]]]:
    """Numbered children, grouped by the prefix before the number: ``layer1``, ``layer2`` -> ``layer``."""
    series: dict[str, list[tuple[str, nn.Module]]] = {}
    for name, _, child in children:
        match = _NUMBERED.fullmatch(name)
        if match is not None:
            series.setdefault(match[1], []).append((name, child))
    return series


def _kind(module: nn.Module) -> type:
    return nn.ModuleList if _is_container(module) else type(module)


def _is_container(module: nn.Module) -> bool:
    """Whether a module only contains others. A subclass of Sequential does not count, because it may be a block."""
    return isinstance(module, nn.ModuleList) or type(module) in (nn.Sequential, nn.ModuleDict)


def _mixes(module: nn.Module) -> bool:
    """Whether a module contains a normalisation or a spatial convolution."""
    return any(_is_norm(m) or any(n > 1 for p in m.parameters(False) for n in p.shape[2:]) for m in module.modules())


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and any(True for _ in module.parameters())


def recurrent_layers(module: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """(``l0``, names of its parameters) for each layer of a multi-layer LSTM, GRU or RNN, both directions together."""
    if not isinstance(module, nn.RNNBase) or module.num_layers == 1:
        return
    names = [name for name, _ in module.named_parameters(recurse=False)]
    for layer in range(module.num_layers):
        yield f"l{layer}", [n for n in names if re.search(rf"_l{layer}(_reverse)?$", n)]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
