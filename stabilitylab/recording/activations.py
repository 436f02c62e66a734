"""Largest activation and attention logit per layer, by forward hooks that leave with the recorder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stabilitylab.models.layers import without_wrappers
from stabilitylab.recording.hooks import ForwardHook


class ForwardMaxima:
    """Watches the modules whose names are layer names (``activation_max``), and modules with a fused ``qkv``
    inside a layer, as timm's attention has (``attention_max``: largest |q k^T| x scale).

    ValueError where a signal finds no module to watch; no hook stays then.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], signals: Sequence[str]) -> None:
        self.names = list(layers)
        self._seen: dict[tuple[str, int], Tensor] = {}
        self._hooks: list[ForwardHook] = []
        found = set()
        for path, module in model.named_modules():
            name = without_wrappers(path)
            if "activation_max" in signals and name in self.names:
                self._hooks.append(ForwardHook(module, partial(self._activation, self.names.index(name))))
                found.add("activation_max")
            if "attention_max" in signals and _has_fused_qkv(module):
                owner = next((i for i, layer in enumerate(self.names) if f"{name}.".startswith(f"{layer}.")), None)
                if owner is not None:
                    self._hooks.append(ForwardHook(module.qkv, partial(self._attention, owner, module)))
                    found.add("attention_max")
        missing = [name for name in signals if name not in found]
        if missing:
            self.remove()
            what = "module named as a layer" if missing[0] == "activation_max" else "attention with a fused qkv"
            raise ValueError(
                f"{missing[0]}: the model has no {what}; leave the signal out, or take another granularity"
            )

    def take(self, signal: str, device: torch.device) -> Tensor:
        """(layers,), -1 where nothing was seen since the last call."""
        values = torch.full((len(self.names),), -1.0, device=device)
        for (kind, layer), value in list(self._seen.items()):
            if kind == signal:
                values[layer] = value
                del self._seen[kind, layer]
        return values

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _note(self, kind: str, layer: int, value: Tensor) -> None:
        known = self._seen.get((kind, layer))
        self._seen[kind, layer] = value if known is None else torch.maximum(known, value)

    def _activation(self, layer: int, output: Any) -> None:
        while isinstance(output, tuple | list) and output:
            output = output[0]
        if torch.is_tensor(output) and output.numel() and torch.is_grad_enabled():
            self._note("activation_max", layer, output.detach().abs().amax().float())

    @torch.no_grad()
    def _logits(self, attention: Any, qkv: Tensor) -> Tensor:
        n, length, _three = qkv.shape
        q, k, _v = qkv.detach().reshape(n, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        q = attention.q_norm(q) if hasattr(attention, "q_norm") else q
        k = attention.k_norm(k) if hasattr(attention, "k_norm") else k
        return q @ k.transpose(-2, -1) * getattr(attention, "scale", q.shape[-1] ** -0.5)

    def _attention(self, layer: int, attention: Any, output: Any) -> None:
        if torch.is_grad_enabled() and torch.is_tensor(output) and output.ndim == 3:
            self._note("attention_max", layer, self._logits(attention, output).abs().amax().float())


def _has_fused_qkv(module: nn.Module) -> bool:
    """Whether one linear map gives q, k and v; a convolution's output is laid out otherwise."""
    qkv = getattr(module, "qkv", None)
    return hasattr(module, "num_heads") and isinstance(qkv, nn.Module) and not isinstance(qkv, nn.modules.conv._ConvNd)
