"""Copy many small tensors to the host: one asynchronous copy per device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Transfer:
    """An asynchronous copy of tensors to the host, as float32."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._shapes = [t.shape for t in tensors]
        self._events: list[torch.cuda.Event] = []
        self._parts: list[tuple[list[int], Tensor]] = []
        places: dict[torch.device, list[int]] = {}
        for index, t in enumerate(tensors):
            places.setdefault(t.device, []).append(index)
        for device, chosen in places.items():
            flat = torch.cat([tensors[i].detach().float().reshape(-1) for i in chosen])
            if device.type == "cuda":
                host = torch.empty(flat.shape, dtype=flat.dtype, device="cpu", pin_memory=True)
                host.copy_(flat, non_blocking=True)
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(device))
                self._events.append(event)
            else:
                host = flat.cpu()
            self._parts.append((chosen, host))

    def ready(self) -> bool:
        """Whether the copy is complete, so that `take` returns without waiting."""
        return all(event.query() for event in self._events)

    def take(self) -> list[np.ndarray]:
        """Wait for the copy and return the values in the given order."""
        for event in self._events:
            event.synchronize()
        arrays: list[np.ndarray] = [np.empty(0)] * len(self._shapes)
        for chosen, host in self._parts:
            sizes = [self._shapes[i].numel() for i in chosen]
            for i, values in zip(chosen, np.split(host.numpy(), np.cumsum(sizes)[:-1]), strict=True):
                arrays[i] = values.reshape(self._shapes[i])
        return arrays
