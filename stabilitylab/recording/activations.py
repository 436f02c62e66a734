"""Activations and attention per layer, by forward hooks that leave with the recorder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stabilitylab.models.layers import without_wrappers
from stabilitylab.recording.hooks import ForwardHook
from stabilitylab.recording.measurement import Measured, Measurement, Step, measures


class ForwardMaximum(Measurement):
    """The largest value that the hooks of a layer noted since the last step; subclasses place the hooks."""

    def __init__(self) -> None:
        self._seen: dict[int, Tensor] = {}
        self._hooks: list[ForwardHook] = []

    def measure(self, step: Step) -> Measured:
        values, measured = step.nothing
        for layer, value in self._seen.items():
            values[layer] = value
            measured[layer] = True
        self._seen.clear()
        return Measured(values, measured)

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _note(self, layer: int, value: Tensor) -> None:
        known = self._seen.get(layer)
        self._seen[layer] = value if known is None else torch.maximum(known, value)

    def _require(self, what: str) -> None:
        if not self._hooks:
            raise ValueError(f"the model has no {what}; leave the signal out, or choose another granularity")


@measures("activation_max")
class ActivationMax(ForwardMaximum):
    """Watches the modules whose names are layer names."""

    def attach(self, model: nn.Module, layers: Sequence[str]) -> None:
        for path, module in model.named_modules():
            name = without_wrappers(path)
            if name in layers:
                self._hooks.append(ForwardHook(module, partial(self._look, layers.index(name))))
        self._require("module named as a layer")

    def _look(self, layer: int, output: Any) -> None:
        while isinstance(output, tuple | list) and output:
            output = output[0]
        if torch.is_tensor(output) and output.numel() and torch.is_grad_enabled():
            self._note(layer, output.detach().abs().amax().float())


@measures("attention_max")
class AttentionMax(ForwardMaximum):
    """The largest |q k^T| x scale of modules with a fused ``qkv`` inside a layer, as timm's attention has."""

    def attach(self, model: nn.Module, layers: Sequence[str]) -> None:
        for path, module in model.named_modules():
            if _has_fused_qkv(module):
                name = without_wrappers(path)
                owner = next((i for i, layer in enumerate(layers) if f"{name}.".startswith(f"{layer}.")), None)
                if owner is not None:
                    self._hooks.append(ForwardHook(module.qkv, partial(self._look, owner, module)))
        self._require("attention with a fused qkv")

    def _look(self, layer: int, attention: Any, output: Any) -> None:
        if torch.is_grad_enabled() and torch.is_tensor(output) and output.ndim == 3:
            self._note(layer, self._logits(attention, output).abs().amax().float())

    @torch.no_grad()
    def _logits(self, attention: Any, qkv: Tensor) -> Tensor:
        n, length, _three = qkv.shape
        q, k, _v = qkv.detach().reshape(n, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        q = attention.q_norm(q) if hasattr(attention, "q_norm") else q
        k = attention.k_norm(k) if hasattr(attention, "k_norm") else k
        return q @ k.transpose(-2, -1) * getattr(attention, "scale", q.shape[-1] ** -0.5)


_IMAGES = 32
"""Of a batch, for the entropy: as many cost less than the logits of all, and tell as much."""


@measures("attention_entropy")
class AttentionEntropy(AttentionMax):
    """The entropy of softmax(q k^T x scale), averaged over queries and images, of the head that has least; of several
    forward passes the lowest. Attention that collapses onto single tokens has none (arXiv 2303.06296)."""

    def _look(self, layer: int, attention: Any, output: Any) -> None:
        if torch.is_grad_enabled() and torch.is_tensor(output) and output.ndim == 3:
            logs = self._logits(attention, output[:_IMAGES]).float().log_softmax(dim=-1)
            of_heads = (logs.exp() * -logs).sum(dim=-1).mean(dim=(0, 2))
            entropy = of_heads.amin()
            known = self._seen.get(layer)
            self._seen[layer] = entropy if known is None else torch.minimum(known, entropy)


def _has_fused_qkv(module: nn.Module) -> bool:
    """Whether one linear map gives q, k and v; a convolution's output is laid out otherwise."""
    qkv = getattr(module, "qkv", None)
    return hasattr(module, "num_heads") and isinstance(qkv, nn.Module) and not isinstance(qkv, nn.modules.conv._ConvNd)
