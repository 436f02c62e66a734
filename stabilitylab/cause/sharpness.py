"""Sharpness: the curvature of the loss at saved checkpoints, compared with the edge of stability.

Gradient descent is unstable along a direction whose curvature exceeds 2 / lr. Adam is unstable where the largest
eigenvalue of the preconditioned Hessian, P^-1/2 H P^-1/2 with P = sqrt(v) + eps, exceeds
(2 + 2 beta1) / (1 - beta1) / lr: 38 / lr at beta1 0.9 (arXiv 2207.14484).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stabilitylab.cause.replay import Replay, ReplayCheck
from stabilitylab.errors import ConfigError

STEPS = 40
"""Number of Lanczos steps. It is fixed, so that the cost is known; the reported error shows whether it was enough."""
ALL = "all layers"


@dataclass(frozen=True)
class Curvature:
    """Curvature of the loss of batch ``iteration`` in the weights of ``layer``, before the update.

    ``directional``: g'Hg / |g|^2, to compare with ``gradient_edge``, 2 / lr. ``eigenvalue``: largest eigenvalue of the
    preconditioned Hessian (the plain one for optimizers without a preconditioner). ``error``: residual norm; some
    eigenvalue lies within this distance. ``edge``: eigenvalue above which the optimizer is unstable; None if unknown.
    """

    iteration: int
    layer: str
    lr: float
    directional: float
    eigenvalue: float
    error: float
    gradient_edge: float
    edge: float | None

    @property
    def verdict(self) -> str:
        """``above`` or ``below`` the edge, ``not resolved`` within the error, ``not judged`` without a known edge."""
        if self.edge is None or not math.isfinite(self.eigenvalue):
            return "not judged"
        if abs(self.eigenvalue - self.edge) <= self.error:
            return "not resolved"
        return "above" if self.eigenvalue > self.edge else "below"


@dataclass(frozen=True)
class Sharpness:
    """The curvatures of a run in order of iteration, for the whole model and by layer."""

    curvatures: tuple[Curvature, ...]
    check: ReplayCheck | None = None

    def sentence(self) -> str:
        """The result as text."""
        whole = [c for c in self.curvatures if c.layer == ALL]
        above = [c for c in whole if c.verdict == "above"]
        worst = max(whole, key=lambda c: c.eigenvalue / (c.edge or 1) if math.isfinite(c.eigenvalue) else -math.inf)
        text = f"Sharpness {worst.eigenvalue:.3g} +- {plain(worst.error)} at iteration {worst.iteration}"
        if worst.edge is None:
            return f"{text}; the edge of stability of this optimizer is unknown."
        where = f"{worst.verdict} it" if worst.verdict in ("above", "below") else worst.verdict
        text += f", {worst.eigenvalue / worst.edge:.2f} of the optimizer's edge {worst.edge:.3g} ({where})"
        if len(whole) == 1:
            return f"{text}; no other iteration was measured."
        return f"{text}; above the edge at {len(above)} of {len(whole)} measured iterations."


def plain(error: float) -> str:
    """An error with one digit, without an exponent unless it is extreme.

    >>> plain(132.0), plain(0.0471)
    ('100', '0.05')
    """
    return f"{float(f'{error:.1g}'):g}"


def lanczos(
    matvec: Callable[[np.ndarray], np.ndarray], size: int, steps: int = STEPS, seed: int = 0
) -> tuple[float, float]:
    """Largest eigenvalue of a symmetric matrix (size, size), given its matrix-vector product, and the residual norm
    |A v - lambda v|. Some eigenvalue lies within the residual norm.

    Uses full reorthogonalisation in double precision. The residual is computed with one more product, so that it
    includes rounding errors of the products.
    """
    steps = min(steps, size)
    rng = np.random.default_rng(seed)
    basis = np.zeros((steps, size))
    alpha, beta = np.zeros(steps), np.zeros(steps)
    vector = rng.standard_normal(size)
    vector /= np.linalg.norm(vector)
    used = 0
    for k in range(steps):
        basis[k], used = vector, k + 1
        product = np.asarray(matvec(vector), float)
        if not np.isfinite(product).all():
            return math.nan, math.inf
        alpha[k] = vector @ product
        for _ in range(2):  # twice is enough (Kahan)
            product = product - basis[:used].T @ (basis[:used] @ product)
        beta[k] = np.linalg.norm(product)
        if beta[k] <= 1e-10 * max(abs(alpha[k]), 1e-300):
            break
        vector = product / beta[k]
    small = np.diag(alpha[:used]) + np.diag(beta[: used - 1], 1) + np.diag(beta[: used - 1], -1)
    values, vectors = np.linalg.eigh(small)
    overlaps = basis[:used].T @ vectors[:, -1]
    overlaps /= np.linalg.norm(overlaps)
    residual = np.asarray(matvec(overlaps), float) - values[-1] * overlaps
    return float(values[-1]), float(np.linalg.norm(residual))


def curvature(
    loss: Tensor,
    parameters: Sequence[Tensor],
    scale: Sequence[Tensor] | None = None,
    steps: int = STEPS,
) -> tuple[float, float, float]:
    """g'Hg / |g|^2, the largest eigenvalue of S H S and its error, with respect to ``parameters``. S is the diagonal
    ``scale``.

    The graph of ``loss`` is retained, so that the function can be called for several layers.
    """
    grads = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    pairs = [(p, g) for p, g in zip(parameters, grads, strict=True) if g is not None and g.requires_grad]
    if not pairs:
        return 0.0, 0.0, 0.0
    kept, slopes = [p for p, _ in pairs], [g for _, g in pairs]
    known = {id(p): s for p, s in zip(parameters, scale or (), strict=True)} if scale else {}
    flat_scale = torch.cat([known[id(p)].flatten() for p in kept]).double() if known else None

    def product(direction: Tensor) -> Tensor:
        parts = [
            part.view_as(p)
            for part, p in zip(direction.to(kept[0].dtype).split([p.numel() for p in kept]), kept, strict=True)
        ]
        products = torch.autograd.grad(slopes, kept, parts, retain_graph=True, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if f is None else f).flatten() for f, p in zip(products, kept, strict=True)]
        ).double()

    g = torch.cat([s.detach().flatten() for s in slopes]).double()
    square = float(g @ g)
    directional = float(g @ product(g)) / square if square else 0.0

    def matvec(vector: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(vector).to(g)
        direction = direction if flat_scale is None else direction * flat_scale
        products = product(direction)
        result: np.ndarray = (products if flat_scale is None else products * flat_scale).cpu().numpy()
        return result

    return directional, *lanczos(matvec, len(g), steps)


def preconditioner(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> list[Tensor] | None:
    """P^-1/2 of Adam, per tensor and bias-corrected. None for optimizers without a second moment."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    scales = []
    for p in parameters:
        state = optimizer.state.get(p) or {}
        if "exp_avg_sq" not in state:
            return None
        group = groups[id(p)]
        corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
        scales.append((corrected.sqrt() + group["eps"]).rsqrt())
    return scales


def edge_of_stability(name: str, lr: float, beta: float) -> float | None:
    """The eigenvalue above which an optimizer is unstable on a quadratic loss. None if unknown for this optimizer."""
    if name == "sgd":
        return (2 + 2 * beta) / lr
    if name in ("adamw", "stableadamw"):
        return (2 + 2 * beta) / (1 - beta) / lr
    return None


def sharpness_run(
    run_dir: Path | Replay,
    *,
    at: Sequence[int],
    by_layer: bool = True,
    steps: int = 24,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sharpness:
    """The curvature before each iteration of ``at``, on the batch of that iteration. The features of the momentum
    encoder are treated as constants.

    Raises:
        ConfigError: the run cannot be replayed, or its learning rate is 0 at one of the iterations.
    """
    replay = run_dir if isinstance(run_dir, Replay) else Replay(run_dir)
    replay.require(at)
    check = replay.check(min(at))
    trainer, method = replay.trainer, replay.trainer.method
    settings = trainer.config.optim
    flat = [t for t in at if trainer.learning_rate(t) == 0]
    if flat:
        raise ConfigError(
            f"the learning rate is 0 at iteration {flat[0]}, so any curvature is stable; choose another iteration"
        )
    done, total = 0, len(at) * (1 + by_layer * sum(layer.trainable for layer in replay.layers))
    curvatures: list[Curvature] = []
    for iteration in at:
        trainer.restore(replay.state_at(iteration))
        lr = trainer.learning_rate(iteration)
        trainer.before_gradient(iteration)
        (views,) = replay.views(iteration, 1)
        beta = settings.momentum if settings.name == "sgd" else settings.beta1
        with _twice_differentiable():
            momentum = method.encode_momentum(views) if method.uses_momentum_encoder else None
            loss = method.loss(method.encode(views), momentum, iteration)
            for name, parameters in _parts(replay, by_layer):
                scale = preconditioner(trainer.optimizer, parameters)
                directional, value, error = curvature(loss, parameters, scale, steps)
                edge = edge_of_stability(settings.name, lr, beta)
                if settings.name != "sgd" and scale is None:
                    edge = None
                curvatures.append(Curvature(iteration, name, lr, directional, value, error, 2 / lr, edge))
                done += 1
                progress(done, total)
    return Sharpness(tuple(curvatures), check)


def seconds_per_iteration(replay: Replay, at: int, steps: int, by_layer: bool) -> float:
    """Duration of `sharpness_run` for one iteration, extrapolated from two Lanczos steps for each part."""
    replay.trainer.restore(replay.state_at(at))
    method = replay.trainer.method
    (views,) = replay.views(at, 1)
    with _twice_differentiable():
        momentum = method.encode_momentum(views) if method.uses_momentum_encoder else None
        loss = method.loss(method.encode(views), momentum, at)
        parts = _parts(replay, by_layer)
        curvature(loss, parts[0][1], steps=1)  # the first call warms up
        began = time.perf_counter()
        for _, parameters in parts:
            curvature(loss, parameters, steps=2)
    # Besides the Lanczos steps: the gradient, its curvature and the residual.
    return (time.perf_counter() - began) * (steps + 3) / (2 + 3)


def _parts(replay: Replay, by_layer: bool) -> list[tuple[str, list[nn.Parameter]]]:
    """Name and trained parameters of all layers together, and of each layer if ``by_layer``."""
    layers = [(layer.name, [p for p in layer.parameters if p.requires_grad]) for layer in replay.layers]
    everything = [p for _, parameters in layers for p in parameters]
    return [(ALL, everything), *[(name, matching) for name, matching in layers if by_layer and matching]]


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Kernels that can be differentiated twice: plain attention, and no code from torch.compile."""
    with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
        yield
