"""Schedules (PAPER, Implementation): pure functions of the iteration."""

from __future__ import annotations

import math


def learning_rate(iteration: int, total: int, peak: float, warmup: int, schedule: str = "cosine") -> float:
    """Linear warmup from 0 over ``warmup`` iterations, then half a cosine to 0 at ``total``, or constant at ``peak`` if
    ``schedule`` is ``constant``."""
    if iteration < warmup:
        return peak * iteration / warmup
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (iteration - warmup) / max(1, total - warmup)))


def ema_momentum(iteration: int, total: int, start: float, schedule: str = "cosine") -> float:
    """Constant at ``start``, or a half cosine from ``start`` to 1 at ``total``."""
    if schedule == "constant":
        return start
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * iteration / total))


def weight_decay(iteration: int, total: int, start: float, end: float | None) -> float:
    """Constant at ``start``, or a half cosine from ``start`` to ``end`` at ``total``."""
    if end is None:
        return start
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * iteration / total))
