"""The base class of all methods.

A method works in two steps, so that the trainer can compute features in chunks or on several devices and still get the
loss of the whole batch: `encode` works image by image, `loss` sees all features of a process.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor, nn

from stabilitylab.config import MethodConfig

Encoder = Callable[[], nn.Module]
M = TypeVar("M", bound=nn.Module)


class Method(nn.Module):
    """A self-supervised method around ``base_encoder``. EMA copies of its modules are named ``momentum_*``."""

    base_encoder: nn.Module
    uses_momentum_encoder = False
    takes_local_crops = False

    def __init__(self, base_encoder: nn.Module, config: MethodConfig) -> None:
        super().__init__()
        self.base_encoder = base_encoder
        self.config = config
        self._averaged_pairs: tuple[list[Tensor], list[Tensor]] | None = None

    @property
    def features(self) -> int:
        """Width of the backbone's features."""
        return int(self.base_encoder.num_features)  # type: ignore[arg-type]

    def add_momentum_copies(self, *names: str) -> None:
        """Add an EMA copy ``momentum_<name>`` without gradient for each module name."""
        self._averaged = names
        for name in names:
            frozen = copy.deepcopy(getattr(self, name)).requires_grad_(False)
            self.add_module(f"momentum_{name.removeprefix('base_')}", frozen)

    @torch.no_grad()
    def update_momentum_encoder(self, ema_momentum: float) -> None:
        """Update the EMA of the parameters; BN buffers are not averaged. ``lerp`` keeps equal values bit-identical."""
        online, averaged = self._pairs()
        torch._foreach_lerp_(averaged, online, 1 - ema_momentum)

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters and their EMA copies, collected once: in a small model it takes as long as the update itself."""
        if self._averaged_pairs is None:
            copies = [f"momentum_{name.removeprefix('base_')}" for name in self._averaged]
            self._averaged_pairs = _parameters(self, self._averaged), _parameters(self, copies)
        return self._averaged_pairs

    def encode(self, views: list[Tensor]) -> list[Tensor]:
        """Backbone features (N, D) of each view."""
        return encode(self.base_encoder, views)

    @torch.no_grad()
    def encode_momentum(self, views: list[Tensor]) -> list[Tensor]:
        """Momentum-backbone features (N, D) of each view."""
        return encode(self.momentum_encoder, views)  # type: ignore[arg-type]

    def loss(self, features: list[Tensor], momentum_features: list[Tensor] | None, iteration: int = 0) -> Tensor:
        """The scalar loss of this process's rows at ``iteration``, from one (N, D) tensor per view. The mean over
        processes is the loss of the whole batch: a loss that needs the rows of other processes gathers them with
        `stabilitylab.models.collectives`."""
        raise NotImplementedError

    def before_update(self, iteration: int) -> None:
        """Called after the gradients have been computed and recorded, before the optimizer step."""


def _parameters(method: nn.Module, names: Iterable[str]) -> list[Tensor]:
    return [p for name in names for p in getattr(method, name).parameters()]


def encode(encoder: nn.Module, views: list[Tensor]) -> list[Tensor]:
    """Encode each view. Without BatchNorm, views of one size share a forward pass, which is faster and gives the same
    result; with BatchNorm, each view has its own pass, so that batch statistics are per view."""
    if mixes_images(encoder):
        return [encoder(view) for view in views]
    features: list[Tensor] = []
    for _, same in groupby(views, key=lambda view: view.shape):
        group = list(same)
        features += encoder(torch.cat(group)).chunk(len(group))
    return features


def mixes_images(encoder: nn.Module) -> bool:
    """Whether the features of an image depend on the other images of its batch."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())
