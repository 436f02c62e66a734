"""Find layers that the main loss does not train, such as a probe on detached features or a separate auxiliary loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stabilitylab.layernames import is_probe
from stabilitylab.models.layers import Layer

_HIDES_ITS_INPUTS = "CheckpointFunctionBackward"


def off_path(loss: object, layers: Sequence[Layer]) -> list[str]:
    """Names of layers that got a gradient, but not from the main loss.

    Terms of a loss are added as scalars. Removing the scalar nodes splits the graph into parts that share no layer; the
    part with the most layers is the main loss. If ``loss`` has no graph, layers are judged by name
    (``online_classifier``). Returns no layers if it would otherwise return all of them.
    """
    trained = [i for i, layer in enumerate(layers) if any(p.grad is not None for p in layer.parameters)]
    if isinstance(loss, Tensor) and loss.grad_fn is not None:
        parts, opaque = _parts(loss.grad_fn, {id(p): i for i, x in enumerate(layers) for p in x.parameters})
        if not parts:
            return []
        main = max(parts, key=lambda part: (len(part), sum(layers[i].num_params for i in part)))
        others = set().union(*parts) - main
        outside = [i for i in trained if i in others or (i not in main and not opaque)]
    else:
        outside = [i for i in trained if is_probe(layers[i].name)]
    return [layers[i].name for i in outside] if len(outside) < len(trained) else []


def _parts(root: Any, owner: dict[int, int]) -> tuple[list[set[int]], bool]:
    """The sets of layers that the terms of a loss reach, merged if they share one, and whether a node hides its
    inputs."""
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
    """Whether a node outputs a single number. Leaves do not count: they are not sums of losses."""
    outputs = getattr(node, "_input_metadata", None)
    if not outputs or not node.next_functions:
        return False
    return all(output is not None and math.prod(output.shape) == 1 for output in outputs)
