"""Choice of the first and the last layer, between which the lag of a spike is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.series import LayerSeries, RunSeries
from stabilitylab.errors import ConfigError


@dataclass(frozen=True)
class Ends:
    """Indices into the list of layers. ``path``: the layers from ``first`` to ``last``, through which a spike may
    travel. ``notes``: which layers were skipped at either end, and why."""

    first: int
    last: int
    path: tuple[int, ...]
    notes: tuple[str, ...] = ()


def find_ends(
    layers: Sequence[LayerSeries], series: RunSeries, *, first: str | None = None, last: str | None = None
) -> Ends | None:
    """The first and the last layer with gradients on the path of the main loss; None without layers.

    ``first``, ``last``: layers named by the user, which take precedence over those that the run names.

    Raises:
        ConfigError: a name is not a layer, the layer has no gradient, or both names are the same layer.
    """
    has = [bool((np.asarray(layer.grad_norm) > 0).any()) for layer in layers]
    if not layers:
        return None
    if not any(has):  # the lag is then inconclusive, whichever layers are chosen
        has = [True] * len(layers)
    names = [layer.name for layer in layers]
    off = [name in series.off_path for name in names]
    inside = [i for i in range(len(layers)) if has[i] and not off[i]] or [i for i in range(len(layers)) if has[i]]
    start = _named("--first", first or series.first, names, has, asked=first is not None)
    end = _named("--last", last or series.last, names, has, asked=last is not None)
    if start is not None and start == end:
        raise ConfigError(f"--first and --last are both {names[start]}; a lag needs two layers")
    a = inside[0] if start is None else start
    b = inside[-1] if end is None else end
    chosen = {a, b} | {i for i in inside if min(a, b) < i < max(a, b)}
    if start is None and end is None:
        chosen |= set(inside)
    notes = []
    outer = [i for i in range(len(layers)) if i < inside[0] or i > inside[-1]]
    if silent := [names[i] for i in outer if not has[i]]:
        notes.append(f"not used as first or last layer, because they have no gradients: {_listed(silent)}")
    if aside := [names[i] for i in outer if has[i] and off[i]]:
        notes.append(f"not used as first or last layer, because the main loss does not reach them: {_listed(aside)}")
    return Ends(a, b, tuple(sorted(chosen, key=lambda i: (i != a, i))), tuple(notes))


def _named(option: str, name: str | None, names: list[str], has: list[bool], *, asked: bool) -> int | None:
    """The index of a layer by name. Only a name given by the user (``asked``) raises ConfigError: a layer named by the
    run may have lost its gradients since."""
    if name is None:
        return None
    if name not in names:
        if asked:
            raise ConfigError(f"{option} {name}: not a trained layer of this run; the layers are {_listed(names, 12)}")
        return None
    if not has[names.index(name)]:
        if asked:
            with_gradients = [n for n, yes in zip(names, has, strict=True) if yes]
            raise ConfigError(
                f"{option} {name}: this layer has no gradient; these layers have one: {_listed(with_gradients, 12)}"
            )
        return None
    return names.index(name)


def _listed(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
