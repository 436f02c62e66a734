"""The contribution of each image of a batch to the gradient of one layer.

``rows``: the gradient that flows through the rows of an image. In a backbone that processes images independently, the
gradient of a layer is a sum over images. It is split exactly into per-sample gradients with ``torch.func``, given the
gradient of the loss with respect to the features of each image. In the heads, the gradient of a linear layer is the sum
over rows of (gradient of its output) x (its input).

``leave-one-out``: the change of the layer's gradient when the image is removed from the batch, including its role as a
negative and its effect on BatchNorm statistics. It takes one pass per image and works for every model and loss.

With either method, the ``novelty`` of an image is the fraction of its contribution that is orthogonal to those of all
other images. In a self-supervised loss, an odd image (blank, saturated) need not have a large gradient, because its two
views agree easily, but its gradient points in a direction of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from stabilitylab.errors import ConfigError
from stabilitylab.methods.base import Method, mixes_images

HOW = ("rows", "leave-one-out")
CHUNK = 16
"""Number of images whose gradients are held in memory together."""


@dataclass(frozen=True)
class Contributions:
    """``norm`` (N,): norm of each image's contribution, relative to that of the batch gradient. ``share`` (N,): its
    projection onto the batch gradient; with ``rows`` the shares sum to 1, with ``leave-one-out`` a share is the
    decrease of the norm without the image. ``novelty`` (N,) between 0 and 1: squared sine of the angle between the
    contribution and the span of the others."""

    how: str
    norm: Tensor
    share: Tensor
    novelty: Tensor


def novelty(parts: Tensor) -> Tensor:
    """Novelty (N,) of ``parts`` (N, P) from their cosine matrix C: 1 / diag(C^-1), slightly regularised."""
    rows = parts.double()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)
    cosines = rows @ rows.T
    ridge = 1e-6 * torch.eye(len(rows), dtype=torch.float64, device=rows.device)
    return (1 / torch.linalg.inv(cosines + ridge).diagonal()).float()


def contributions(
    method: Method, views: Sequence[Tensor], parameters: Sequence[nn.Parameter], how: str, iteration: int = 0
) -> Contributions:
    """The contribution of each image to the gradient of ``parameters``, those of one layer.

    ``views``: one tensor (N, C, H, W) per view. The weights and buffers of ``method`` are not changed.

    Raises:
        ConfigError: ``rows`` cannot split the gradient of this layer.
    """
    buffers = {name: b.clone() for name, b in method.named_buffers()}
    try:
        with sdpa_kernel(SDPBackend.MATH):
            if how == "rows":
                return _rows(method, list(views), parameters, iteration)
            return _leave_one_out(method, list(views), parameters, iteration)
    finally:
        with torch.no_grad():
            for name, b in method.named_buffers():
                b.copy_(buffers[name])


def default_way(method: Method, parameters: Sequence[nn.Parameter]) -> str:
    """``rows`` if it splits the gradient of the layer exactly, else ``leave-one-out``."""
    inside = {id(p) for p in method.base_encoder.parameters()}
    if all(id(p) in inside for p in parameters):
        return "leave-one-out" if mixes_images(method.base_encoder) else "rows"
    return "rows" if _linears(method, parameters) else "leave-one-out"


def _features(method: Method, views: list[Tensor]) -> tuple[list[Tensor], list[Tensor] | None]:
    momentum = method.encode_momentum(views) if method.uses_momentum_encoder else None
    return method.encode(views), momentum


def _rows(method: Method, views: list[Tensor], parameters: Sequence[nn.Parameter], iteration: int) -> Contributions:
    inside = {id(p) for p in method.base_encoder.parameters()}
    within = [id(p) in inside for p in parameters]
    if all(within) and mixes_images(method.base_encoder):
        raise ConfigError(
            f"{type(method.base_encoder).__name__} has BatchNorm, so its gradient is not a sum over images; use "
            "--how leave-one-out"
        )
    with torch.no_grad():
        features, momentum = _features(method, views)
    leaves = [f.detach().requires_grad_() for f in features]
    if all(within):
        delta = torch.autograd.grad(method.loss(leaves, momentum, iteration), leaves)
        parts = _encoder_parts(method.base_encoder, views, delta, parameters)
    else:
        parts = _head_parts(method, leaves, momentum, parameters, iteration)
    whole = parts.sum(0)
    size = _size(whole)
    return Contributions("rows", parts.norm(dim=1) / size, parts @ whole / size**2, novelty(parts))


def _encoder_parts(
    encoder: nn.Module, views: list[Tensor], delta: Sequence[Tensor], parameters: Sequence[nn.Parameter]
) -> Tensor:
    """(N, P): per-image gradients of a backbone layer, summed over views."""
    wanted = {id(p) for p in parameters if p.requires_grad}
    chosen = {name: p.detach() for name, p in encoder.named_parameters() if id(p) in wanted}

    def along(weights: dict[str, Tensor], image: Tensor, way: Tensor) -> Tensor:
        output: Tensor = functional_call(encoder, weights, (image[None],))
        return (output[0] * way).sum()

    each = vmap(grad(along), in_dims=(None, 0, 0), chunk_size=CHUNK, randomness="different")
    total: Tensor | None = None
    for view, way in zip(views, delta, strict=False):  # a method may encode fewer views than there are
        with torch.no_grad():  # torch.func computes the gradients, so autograd needs no graph
            gradients = each(chosen, view, way)
        part = torch.cat([g.flatten(1) for g in gradients.values()], 1)
        total = part if total is None else total + part
    assert total is not None
    return total


def _linears(method: Method, parameters: Sequence[nn.Parameter]) -> list[nn.Linear]:
    wanted = {id(p) for p in parameters}
    return [m for m in method.modules() if isinstance(m, nn.Linear) and id(m.weight) in wanted]


def _head_parts(
    method: Method,
    leaves: list[Tensor],
    momentum: list[Tensor] | None,
    parameters: Sequence[nn.Parameter],
    iteration: int,
) -> Tensor:
    """(N, P): per-image contributions to the gradient of the linear layers of a head."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen.append((inputs[0].detach(), output))

    linears = _linears(method, parameters)
    if not linears:
        raise ConfigError("this layer has no linear layer whose rows are images; use --how leave-one-out")
    hooks = [linear.register_forward_hook(note) for linear in linears]
    try:
        loss = method.loss(leaves, momentum, iteration)
    finally:
        for hook in hooks:
            hook.remove()
    deltas = torch.autograd.grad(loss, [output for _, output in seen])
    # A linear layer is called once per view; sum over its calls.
    per_call = [torch.einsum("no,ni->noi", d, x).flatten(1) for d, (x, _) in zip(deltas, seen, strict=True)]
    calls = len(per_call) // len(linears)
    by_view = [torch.cat(per_call[c * len(linears) : (c + 1) * len(linears)], 1) for c in range(calls)]
    return torch.stack(by_view).sum(0)


def _size(gradient: Tensor) -> Tensor:
    """Norm of the batch gradient. Raises ConfigError if it cannot be shared out."""
    size = gradient.norm()
    if not torch.isfinite(size) or not size:
        state = "0" if torch.isfinite(size) else "not finite"
        raise ConfigError(
            f"the gradient of this layer is {state}, so it has no contributions; choose another iteration"
        )
    return size


def _leave_one_out(
    method: Method, views: list[Tensor], parameters: Sequence[nn.Parameter], iteration: int
) -> Contributions:
    trained = [p for p in parameters if p.requires_grad]

    def gradient(kept: Tensor) -> Tensor:
        features, momentum = _features(method, [view[kept] for view in views])
        gradients = torch.autograd.grad(method.loss(features, momentum, iteration), trained, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(gradients, trained, strict=True)]
        )

    everything = torch.arange(len(views[0]), device=views[0].device)
    whole = gradient(everything)
    size = _size(whole)
    parts, shares = [], []
    for i in range(len(everything)):
        without = gradient(everything[everything != i])
        parts.append(whole - without)
        shares.append(1 - without.norm() / size)
    stacked = torch.stack(parts).detach()
    return Contributions("leave-one-out", stacked.norm(dim=1) / size, torch.stack(shares), novelty(stacked))
