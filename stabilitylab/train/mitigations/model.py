"""Mitigations that change the patch projection of both encoders, online and momentum."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from stabilitylab.methods.base import Method
from stabilitylab.models.vit import TokenBatchNorm


def patch_embeds(method: Method) -> list[nn.Module]:
    """The patch embeddings of the base encoder and, if there is one, of the momentum encoder."""
    encoders = [method.base_encoder]
    if method.uses_momentum_encoder:
        encoders.append(method.get_submodule("momentum_encoder"))
    return [encoder.get_submodule("patch_embed") for encoder in encoders]


def patch_projection(method: Method) -> nn.Module:
    """The patch projection of the base encoder, which is the one to freeze or clip."""
    return patch_embeds(method)[0].get_submodule("proj")


def freeze(method: Method, value: float | None) -> None:
    patch_projection(method).requires_grad_(False)


def add_batch_norm(method: Method, value: float | None) -> None:
    for embed in patch_embeds(method):
        weight = embed.get_submodule("proj").weight
        norm = TokenBatchNorm(len(weight)).to(weight.device)  # type: ignore[arg-type]
        embed.norm = norm.requires_grad_(embed is patch_embeds(method)[0])


def add_weight_norm(method: Method, value: float | None) -> None:
    """w = g v / |v| with one g per output channel. Initialised to the same function."""
    for embed in patch_embeds(method):
        projection = embed.get_submodule("proj")
        trained = [p.requires_grad for p in projection.parameters()]
        weight_norm(projection, dim=0)
        for p in projection.parametrizations.parameters():  # type: ignore[union-attr]
            p.requires_grad_(trained[0])
