"""Writes the layers of a run to the store: their order, and which ones are the first and the last."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn

from stabilitylab.errors import RecordError
from stabilitylab.models.layers import Layer
from stabilitylab.recording.losspath import off_path
from stabilitylab.recording.order import ExecutionOrder
from stabilitylab.recording.recorder import Sink


def check_ends(layers: Sequence[Layer], first: str | None, last: str | None) -> None:
    """Raise RecordError unless ``first`` and ``last``, if given, name two different trainable layers."""
    trainable = {layer.name: layer.trainable for layer in layers}
    for option, name in (("first", first), ("last", last)):
        if name is not None and name not in trainable:
            raise RecordError(f"{option}={name!r} is not a layer; the layers are {', '.join(trainable)}")
        if name is not None and not trainable[name]:
            raise RecordError(f"{option}={name!r} has no gradient: all its parameters are frozen; choose another layer")
    if first is not None and first == last:
        raise RecordError(f"first= and last= are both {first!r}; a lag needs two layers")


class Ordering:
    """Writes the table ``layers`` at the first training step, and again when a layer runs that the first step skipped.

    ``first``, ``last``: the layers between which the user wants the lag measured; None leaves the choice to the
    analysis.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[Layer], *, watch: bool, first: str | None, last: str | None
    ) -> None:
        self._layers = list(layers)
        self._ends = {"first": first, "last": last}
        self._watch = ExecutionOrder(model, layers) if watch else None
        self._seen = False
        self._off_path: list[str] = []

    def note_loss(self, loss: object) -> None:
        """Record after the first backward pass which layers the main loss does not reach."""
        if not self._seen:
            self._off_path = off_path(loss, self._layers)

    def step(self, iteration: int, sink: Sink, loss: object = None) -> None:
        """Call this between ``backward()`` and the update of each step."""
        if self._seen:
            depths = self._watch.changed() if self._watch is not None else None
            if depths is not None:
                self._write(sink, depths)
            return
        if loss is not None or not self._off_path:
            self.note_loss(loss)
        self._seen = True
        self._check_gradients()
        if self._watch is not None:
            depths = self._watch.first_step()
            if not self._watch.ran and any(p.grad is not None for x in self._layers for p in x.parameters):
                text = (
                    "no layer ran while recording: depth is the order of registration. Set depth=, or record() earlier"
                )
                sink.event(iteration, "order-unknown", text)
                warnings.warn(text, stacklevel=4)
            self._write(sink, depths)
        for end, name in self._ends.items():
            if name is not None:
                sink.event(iteration, f"{end}-layer", name)
        for name in self._off_path:
            sink.event(iteration, "off-path", name)

    def close(self, iteration: int, sink: Sink) -> None:
        """Remove all hooks. The layers of a run without any step are written in the order of their names."""
        if not self._seen and self._watch is not None:
            self._write(sink, self._watch.first_step())
        self._seen = True
        if self._watch is not None:
            self._watch.remove()

    def _check_gradients(self) -> None:
        trained = {x.name for x in self._layers if any(p.grad is not None for p in x.parameters)}
        for end, name in self._ends.items():
            if trained and name is not None and name not in trained:
                others = ", ".join(x.name for x in self._layers if x.name in trained)
                raise RecordError(f"{end}={name!r} had no gradient in the first step; these layers had one: {others}")

    def _write(self, sink: Sink, depths: Sequence[int]) -> None:
        columns = {
            "layer_id": list(range(len(self._layers))),
            "name": [layer.name for layer in self._layers],
            "depth": list(depths),
            "num_params": [layer.num_params for layer in self._layers],
            "trainable": [layer.trainable for layer in self._layers],
        }
        sink.append("layers", columns)
