"""Kicks: random moves of a layer's weights, and how many of them an experiment makes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from stabilitylab.errors import ConfigError


@torch.no_grad()
def kick(parameters: Sequence[nn.Parameter], size: float, generator: torch.Generator) -> None:
    """Move each trained tensor in a random direction by ``size`` times its norm, in place."""
    for p in parameters:
        if p.requires_grad:
            direction = torch.randn(p.shape, generator=generator, device="cpu")
            p.add_((direction * (size / direction.norm())).to(p) * p.norm())


def checked(
    layers: Sequence[str], at: Sequence[int], size: float, kicks: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Layers and iterations without repetitions: a repeated iteration would count as a second independent sample."""
    if not layers or not at:
        raise ConfigError(f"an impulse needs at least one {'layer' if not layers else 'iteration'}")
    if not size >= 0 or kicks < 1:
        raise ConfigError(f"an impulse needs a size of at least 0 and at least one kick, not {size:g} and {kicks}")
    return tuple(dict.fromkeys(layers)), tuple(dict.fromkeys(at))


def planned_futures(layers: Sequence[str], at: Sequence[int], kicks: int, of: str = "weights") -> int:
    """Number of futures that `impulse_run` trains. A scaled gradient has no random direction, so it is not repeated."""
    return len(at) * (1 + len(layers) * (1 if of == "gradient" else kicks))


def generator_of(seed: int, *key: int) -> torch.Generator:
    """The generator of the direction of one kick."""
    state = np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
