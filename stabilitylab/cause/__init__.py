"""Causal experiments: `impulse` for any training loop, and `impulse_run`, `swap_run`, `blame_run`, `sharpness_run` and
`branch_run` for recorded runs, which replay the run without changing it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stabilitylab.cause.blame import blame_run
    from stabilitylab.cause.branch import branch_run
    from stabilitylab.cause.impulses import impulse, impulse_run, layer_norms, pool
    from stabilitylab.cause.replay import Replay
    from stabilitylab.cause.sharpness import curvature, lanczos, sharpness_run
    from stabilitylab.cause.swap import swap_run

__all__ = [
    "Replay",
    "blame_run",
    "branch_run",
    "curvature",
    "impulse",
    "impulse_run",
    "lanczos",
    "layer_norms",
    "pool",
    "sharpness_run",
    "swap_run",
]

_HOMES = {
    "Replay": "replay",
    "blame_run": "blame",
    "branch_run": "branch",
    "curvature": "sharpness",
    "lanczos": "sharpness",
    "sharpness_run": "sharpness",
    "swap_run": "swap",
}


def __getattr__(name: str) -> Any:
    """Import names on first access, so that ``import stabilitylab.cause`` does not import torch."""
    if name not in __all__:
        raise AttributeError(f"module 'stabilitylab.cause' has no attribute {name!r}")
    return getattr(import_module(f"stabilitylab.cause.{_HOMES.get(name, 'impulses')}"), name)
