"""Which layers lie on the path of the main loss: not a probe on detached features, not a loss of its own beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stabilitylab.layernames import is_probe
from stabilitylab.models.layers import Layer

_HIDES_ITS_INPUTS = "CheckpointFunctionBackward"


def off_path(loss: object, layers: Sequence[Layer]) -> list[str]:
    """Layers that got a gradient, but not from the main loss.

    Losses that are added up meet in scalars. Without them the graph falls apart into the parts that share layers; the
    part with most layers is the main loss's. Where ``loss`` has no graph, names tell (``online_classifier``). Nothing
    is left out where nothing would remain.
    """
    trained = [i for i, layer in enumerate(layers) if any(p.grad is not None for p in layer.parameters)]
    if isinstance(loss, Tensor) and loss.grad_fn is not None:
        parts, opaque = _parts(loss.grad_fn, {id(p): i for i, x in enumerate(layers) for p in x.parameters})
        if not parts:
            return []
        main = max(parts, key=lambda part: (len(part), sum(layers[i].num_params for i in part)))
        others = set().union(*parts) - main
        found = [i for i in trained if i in others or (i not in main and not opaque)]
    else:
        found = [i for i in trained if is_probe(layers[i].name)]
    return [layers[i].name for i in found] if len(found) < len(trained) else []


def _parts(root: Any, owner: dict[int, int]) -> tuple[list[set[int]], bool]:
    """The sets of layers that the terms of a loss reach, joined where they share one; and whether a node hides what
    it reaches."""
    terms, seen, open_nodes = [], {root}, [root]
    while open_nodes:
        node = open_nodes.pop()
        if _is_scalar(node):
            for child, _ in node.next_functions:
                if child is not None and child not in seen:
                    seen.add(child)
                    open_nodes.append(child)
        else:
            terms.append(node)
    opaque = False
    parts: list[set[int]] = []
    for term in terms:
        reached, hides = _reach(term, owner)
        opaque |= hides
        if reached:
            touching = [part for part in parts if part & reached]
            parts = [part for part in parts if not part & reached] + [reached.union(*touching)]
    return parts, opaque


def _reach(term: Any, owner: dict[int, int]) -> tuple[set[int], bool]:
    reached, hides = set(), False
    seen, open_nodes = {term}, [term]
    while open_nodes:
        node = open_nodes.pop()
        hides |= node.name().startswith(_HIDES_ITS_INPUTS)
        layer = owner.get(id(getattr(node, "variable", None)))
        if layer is not None:
            reached.add(layer)
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                open_nodes.append(child)
    return reached, hides


def _is_scalar(node: Any) -> bool:
    """Whether what a node computed is one number. A leaf is no sum of losses."""
    outputs = getattr(node, "_input_metadata", None)
    if not outputs or not node.next_functions:
        return False
    return all(output is not None and math.prod(output.shape) == 1 for output in outputs)
