"""Layers from the series names of a log: their order, and the merging of parameters into layers.

A log contains no model, so only names are available. The recorder, which has the model, uses its modules instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabilitylab.importers.series import Log, Series

_PARAMETERS = re.compile(
    r"weight(_[gv])?|bias|kernel|scale|gamma|beta|embeddings?|(cls|mask|reg|dist)_token|(in_proj|q|k|v)_(weight|bias)"
    r"|pos(ition)?_embed(ding)?s?|layer_scale\w*|alpha|(weight|bias)_(ih|hh)_l\d+\w*",
    re.IGNORECASE,
)
_WRAPPERS = (
    "base_encoder", "module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module"
)  # fmt: skip
_BLOCKS = re.compile(r"\w*(?:blocks?|layers?|stages?|levels?|cells?)\d*|h", re.IGNORECASE)
_INPUTS = frozenset(
    ("patch_embed", "patch_embedding", "conv1", "stem", "embed", "embedding", "embeddings", "embed_tokens", "wte",
     "tok_embeddings", "word_embeddings", "conv_proj", "input_proj", "embedder")
)  # fmt: skip
_TOKENS = re.compile(r"tokens?|\w+_token|pos(ition)?_?emb\w*|wpe|bn1", re.IGNORECASE)
_HEADS = ("projector", "predictor", "prototypes")
_OUTPUTS = re.compile(r"(lm_|cls_)?head\w*|classifier|fc|logits|output", re.IGNORECASE)
_FINAL_NORMS = re.compile(r"(final_?)?(layer_?)?norm(_f|_final)?|ln_(f|final|post)|final_layer_?norm", re.IGNORECASE)


@dataclass
class LayerNorms:
    """Gradient norm of a layer, its largest entry if that was logged, and its depth if the log contains it."""

    name: str
    norm: Series
    largest: Series | None = None


def layers_of_parameters(log: Log, norms: dict[str, Series], maxima: dict[str, Series]) -> list[LayerNorms]:
    """The layers from input to output. Norms of parameters are merged into layers as the recorder would group them;
    series that are not named like a parameter are layers already."""
    norms = {layer: series for layer, series in norms.items() if len(series)}
    if log.depths:
        ordered = sorted(norms, key=lambda layer: log.depths.get(layer, len(log.depths)))
        return [LayerNorms(layer, norms[layer], maxima.get(layer)) for layer in ordered]
    if not _are_parameters(list(norms)):
        ordered = depth_order(list(norms))
        return [LayerNorms(layer, norms[layer], maxima.get(layer)) for layer in ordered]
    alphabetical = list(norms) == sorted(norms)
    groups = group_parameters(natural_order(list(norms)))
    merged: dict[str, LayerNorms] = {}
    partial = 0
    for layer, parameters in groups.items():
        norm, missing = _root_of_squares(layer, [norms[name] for name in parameters])
        partial += missing
        largest = [maxima[name] for name in parameters if name in maxima]
        whole = _largest(layer, largest) if len(largest) == len(parameters) else None
        merged[layer] = LayerNorms(layer, norm, whole)
    log.note("merged", f"{len(norms):,} parameters were merged into {len(merged)} layers (root of the sum of squares)")
    if partial:
        log.note("partial", f"{partial:,} rows of layers were skipped because some of their parameters are missing")
    return [merged[layer] for layer in depth_order(sorted(merged) if alphabetical else list(merged))]


def group_parameters(parameters: Sequence[str]) -> dict[str, list[str]]:
    """layer -> its parameters, from names alone. A layer is the innermost repeated block (``layers.0.blocks.1``) or a
    module outside any block. A prefix shared by all names (``net`` in ``net.blocks.0``) is removed."""
    paths = {name: _module_path(name) for name in parameters}
    modules = [path for path in paths.values() if path]
    shared = _shared(modules)
    holders = {path[:length] for path in modules if (block := _block(path)) for length in range(shared, block - 1)}
    groups: dict[str, list[str]] = {}
    for name, path in paths.items():
        block = _block(path)
        if not block:
            block = next((i + 1 for i in range(shared, len(path)) if path[: i + 1] not in holders), len(path))
        layer = path[min(shared, len(path) - 1) : block] if path else ()
        groups.setdefault(".".join(layer) or "tokens", []).append(name)
    return groups


def _module_path(parameter: str) -> tuple[str, ...]:
    """The module path of a parameter. Flax numbers modules with an underscore: ``layer_0/kernel``."""
    path = parameter.replace("/", ".")
    if path.rpartition(".")[2] in ("kernel", "scale", "embedding"):
        path = re.sub(r"(?<=[A-Za-z])_(\d+)(?=\.)", r".\1", path)
    parts = [part for part in path.split(".") if part not in _WRAPPERS]
    if parts and parts[0] == "params":
        del parts[0]
    return tuple(parts[:-1])


def _block(path: tuple[str, ...]) -> int:
    """Number of leading parts that name the innermost repeated block of a path; 0 outside of blocks."""
    numbered = [i for i, part in enumerate(path) if part.isdigit()]
    blocks = [i for i in numbered if i and _BLOCKS.fullmatch(path[i - 1])]
    return (blocks[-1] if blocks else numbered[0]) + 1 if numbered else 0


def _shared(modules: Sequence[tuple[str, ...]]) -> int:
    """Number of leading parts that all modules share, not counting those that name a layer."""
    if len(set(modules)) < 2:
        return 0
    shared = 0
    for parts in zip(*modules, strict=False):
        if len(set(parts)) > 1 or parts[0].isdigit():
            break
        shared += 1
    while shared and any(len(module) <= shared or module[shared].isdigit() for module in modules):
        shared -= 1  # ``blocks`` of ``blocks.0`` belongs to the layer's name
    return shared


def depth_order(names: Sequence[str]) -> list[str]:
    """Layer names from input to output as far as names show, else in the given order. An alphabetical order carries no
    information, so a final norm is then recognised by its name as well."""
    alphabetical = list(names) == sorted(names)
    return sorted(natural_order(list(names)), key=lambda name: _rank(name, alphabetical))


def _rank(name: str, alphabetical: bool) -> int:
    parts = re.split(r"[./]", name)
    for index, part in enumerate(parts):
        if part in _HEADS:
            return 5 + _HEADS.index(part)
        if part.isdigit() and index:
            return 2
        if part in _INPUTS:
            return 0
        if _TOKENS.fullmatch(part):
            return 1
        if alphabetical and _OUTPUTS.fullmatch(part):
            return 4
        if alphabetical and _FINAL_NORMS.fullmatch(part):
            return 3
    return 2


def _are_parameters(names: Sequence[str]) -> bool:
    """Whether the names are those of parameters: most of them end in ``.weight``, ``/kernel`` or the like."""
    ends = [_PARAMETERS.fullmatch(re.split(r"[./]", name)[-1]) is not None for name in names]
    return len(ends) > 0 and sum(ends) > 0.5 * len(ends)


def _root_of_squares(layer: str, parts: Sequence[Series]) -> tuple[Series, int]:
    """The joint norm of several parameters at the steps at which all of them were logged, and the number of other
    steps."""
    if len(parts) == 1:
        return parts[0], 0
    steps = parts[0].step
    every = steps
    for part in parts[1:]:
        if len(part) != len(steps) or not np.array_equal(part.step, steps):
            every = np.union1d(every, part.step)
            steps = np.intersect1d(steps, part.step)
    squares = np.zeros(len(steps))
    with np.errstate(over="ignore", invalid="ignore"):
        scale = max((float(np.nanmax(part.value[np.isfinite(part.value)], initial=0.0)) for part in parts), default=0.0)
        scale = scale if scale > 0 else 1.0
        for part in parts:
            squares += (part.value[np.searchsorted(part.step, steps)] / scale) ** 2
        norm = scale * np.sqrt(squares)
    approximate = any(part.approximate for part in parts)
    return Series(layer, steps, norm, np.arange(len(steps)), approximate=approximate), len(every) - len(steps)


def _largest(layer: str, parts: Sequence[Series]) -> Series:
    steps = parts[0].step
    for part in parts[1:]:
        steps = np.intersect1d(steps, part.step)
    stacked = np.stack([part.value[np.searchsorted(part.step, steps)] for part in parts])
    return Series(layer, steps, stacked.max(axis=0), np.arange(len(steps)))


def natural_order(names: list[str]) -> list[str]:
    """Alphabetically sorted names in natural order, with ``blocks.2`` before ``blocks.10``; any other order is kept."""
    if names != sorted(names):
        return names
    return sorted(names, key=lambda name: [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)])
