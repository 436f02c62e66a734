"""Activations and attention per layer, measured with forward hooks that are removed when the recorder closes."""

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
    """The largest value that the hooks of a layer have seen since the last step. Subclasses register the hooks."""

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
            raise ValueError(f"the model has no {what}; remove the signal or choose another granularity")


@measures("activation_max")
class ActivationMax(ForwardMaximum):
    """The largest absolute output of each layer that is a single module."""

    def attach(self, model: nn.Module, layers: Sequence[str]) -> None:
        for path, module in model.named_modules():
            name = without_wrappers(path)
            if name in layers:
                self._hooks.append(ForwardHook(module, partial(self._look, layers.index(name))))
        self._require("module with the name of a layer")

    def _look(self, layer: int, output: Any) -> None:
        while isinstance(output, tuple | list) and output:
            output = output[0]
        if torch.is_tensor(output) and output.numel() and torch.is_grad_enabled():
            self._note(layer, output.detach().abs().amax().float())


@measures("attention_max")
class AttentionMax(ForwardMaximum):
    """The largest attention logit, |q k^T| * scale, of modules with a fused ``qkv`` such as timm's attention."""

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
"""Images per batch that the entropy is computed from. A subset is enough and costs less than all logits."""


@measures("attention_entropy")
class AttentionEntropy(AttentionMax):
    """The entropy of softmax(q k^T * scale), averaged over queries and images: the minimum over heads and forward
    passes. It is 0 if attention collapses onto single tokens (arXiv 2303.06296)."""

    def _look(self, layer: int, attention: Any, output: Any) -> None:
        if torch.is_grad_enabled() and torch.is_tensor(output) and output.ndim == 3:
            logs = self._logits(attention, output[:_IMAGES]).float().log_softmax(dim=-1)
            of_heads = (logs.exp() * -logs).sum(dim=-1).mean(dim=(0, 2))
            entropy = of_heads.amin()
            known = self._seen.get(layer)
            self._seen[layer] = entropy if known is None else torch.minimum(known, entropy)


def _has_fused_qkv(module: nn.Module) -> bool:
    """Whether one linear layer computes q, k and v. A convolution has another output layout and does not count."""
    qkv = getattr(module, "qkv", None)
    return hasattr(module, "num_heads") and isinstance(qkv, nn.Module) and not isinstance(qkv, nn.modules.conv._ConvNd)
