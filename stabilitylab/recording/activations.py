"""Largest activation and attention logit per layer, by forward hooks that leave with the recorder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stabilitylab.models.layers import without_wrappers


class ForwardMaxima:
    """Watches the modules whose names are layer names (``activation_max``), and modules with a fused ``qkv``
    inside a layer, as timm's attention has (``attention_max``: largest |q k^T| x scale)."""

    def __init__(self, model: nn.Module, layers: Sequence[str], signals: Sequence[str]) -> None:
        self.names = list(layers)
        self._seen: dict[tuple[str, int], Tensor] = {}
        self._hooks = []
        for path, module in model.named_modules():
            name = without_wrappers(path)
            if "activation_max" in signals and name in self.names:
                self._hooks.append(module.register_forward_hook(self._activation(self.names.index(name))))
            if "attention_max" in signals and hasattr(module, "qkv") and hasattr(module, "num_heads"):
                owner = next((i for i, layer in enumerate(self.names) if f"{name}.".startswith(f"{layer}.")), None)
                if owner is not None:
                    self._hooks.append(module.qkv.register_forward_hook(self._attention(owner, module)))

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

    def _activation(self, layer: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if torch.is_tensor(output) and torch.is_grad_enabled():
                self._note("activation_max", layer, output.detach().abs().amax().float())

        return hook

    def _attention(self, layer: int, attention: Any) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            if not torch.is_grad_enabled():
                return
            with torch.no_grad():
                n, length, _three = output.shape
                q, k, _v = output.detach().reshape(n, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
                q = attention.q_norm(q) if hasattr(attention, "q_norm") else q
                k = attention.k_norm(k) if hasattr(attention, "k_norm") else k
                scale = getattr(attention, "scale", q.shape[-1] ** -0.5)
                self._note("attention_max", layer, (q @ k.transpose(-2, -1) * scale).abs().amax().float())

        return hook
