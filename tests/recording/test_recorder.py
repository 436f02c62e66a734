"""The recorder against plain autograd."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from stabilitylab.models.layers import group_layers
from stabilitylab.recording.recorder import Recorder


class MemorySink:
    def __init__(self) -> None:
        self.tables: dict[str, list[Mapping[str, object]]] = {}
        self.published = 0
        self.events: list[tuple[int, str, str]] = []

    def append(self, table: str, columns: Mapping[str, object]) -> None:
        self.tables.setdefault(table, []).append(columns)

    def event(self, iteration: int, kind: str, detail: str) -> None:
        self.events.append((iteration, kind, detail))

    def publish(self, wait: bool = False) -> None:
        self.published += 1

    def column(self, table: str, name: str) -> np.ndarray:
        return np.ma.concatenate([np.ma.asarray(block[name]) for block in self.tables[table]])


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.LayerNorm(3))


SIGNALS = ("grad_norm", "grad_max", "weight_norm")


def record(net: nn.Module, losses: list[torch.Tensor], **options: int) -> tuple[MemorySink, Recorder]:
    sink = MemorySink()
    recorder = Recorder(group_layers(net), sink, signals=SIGNALS, **options)  # type: ignore[arg-type]
    for iteration, loss in enumerate(losses):
        net.zero_grad()
        loss.backward()
        recorder.step(iteration, loss=loss.detach())
    recorder.flush()
    return sink, recorder


def test_norms_equal_plain_autograd() -> None:
    net = small_net()
    inputs = torch.randn(4, 9, 5)
    sink, _ = record(net, [net(x).pow(2).sum() for x in inputs])
    index = 0
    for x in inputs:
        grads = torch.autograd.grad(net(x).pow(2).sum(), list(net.parameters()))
        total = 0.0
        for layer in range(3):  # two parameters each
            flat = torch.cat([g.flatten() for g in grads[2 * layer : 2 * layer + 2]]).double()
            weights = torch.cat([p.flatten() for p in list(net.parameters())[2 * layer : 2 * layer + 2]]).double()
            assert sink.column("layer_stats", "grad_norm")[index] == pytest.approx(flat.norm().item(), rel=1e-5)
            assert sink.column("layer_stats", "grad_max")[index] == pytest.approx(flat.abs().max().item(), rel=1e-6)
            assert sink.column("layer_stats", "weight_norm")[index] == pytest.approx(weights.norm().item(), rel=1e-5)
            total += flat.norm().item() ** 2
            index += 1
        row = int(sink.column("layer_stats", "iteration")[index - 1])
        assert sink.column("iterations", "grad_norm")[row] == pytest.approx(math.sqrt(total), rel=1e-5)


def test_one_row_per_layer_and_iteration() -> None:
    net = small_net()
    sink, _ = record(net, [net(torch.randn(2, 5)).sum() for _ in range(7)], flush_every=3)
    pairs = list(zip(sink.column("layer_stats", "iteration"), sink.column("layer_stats", "layer_id"), strict=True))
    assert sorted(pairs) == [(t, layer) for t in range(7) for layer in range(3)]


def test_a_frozen_layer_is_absent_and_a_layer_without_gradient_is_null() -> None:
    net = small_net()
    net[0].requires_grad_(False)
    sink = MemorySink()
    recorder = Recorder(group_layers(net), sink, signals=SIGNALS)
    net[2](torch.randn(2, 7)).sum().backward()  # the LayerNorm is not used
    recorder.step(0)
    recorder.flush()
    assert sink.column("layer_stats", "layer_id").tolist() == [1, 2]
    grad_norm = sink.column("layer_stats", "grad_norm")
    assert np.ma.getmaskarray(grad_norm).tolist() == [False, True]
    assert sink.column("iterations", "grad_norm")[0] == pytest.approx(grad_norm[0])
    assert not np.ma.getmaskarray(sink.column("layer_stats", "weight_norm")).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_gradients_are_recorded_as_they_are(bad: float) -> None:
    net = small_net()
    sink = MemorySink()
    recorder = Recorder(group_layers(net), sink)
    net(torch.randn(2, 5)).pow(2).sum().backward()
    net[2].weight.grad[0, 0] = bad
    recorder.step(0)
    recorder.flush()
    for signal in ("grad_norm", "grad_max"):
        values = sink.column("layer_stats", signal)
        assert np.isfinite(values[0])
        assert not np.isfinite(values[1])
        assert math.isnan(values[1]) == math.isnan(bad)
        assert np.isfinite(values[2])


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_norms_keep_their_precision_at_extreme_scales(scale: float) -> None:
    net = small_net()
    sink = MemorySink()
    recorder = Recorder(group_layers(net), sink)
    for p in net.parameters():
        p.grad = torch.full_like(p, scale)
    recorder.step(0)
    recorder.flush()
    assert sink.column("layer_stats", "grad_norm")[0] == pytest.approx(scale * math.sqrt(5 * 7 + 7), rel=1e-5)
    assert sink.column("layer_stats", "grad_max")[0] == pytest.approx(scale, rel=1e-6)


def test_recording_changes_no_gradient() -> None:
    net = small_net()
    x = torch.randn(4, 5)
    net(x).pow(2).sum().backward()
    before = [p.grad.clone() for p in net.parameters()]
    recorder = Recorder(group_layers(net), MemorySink())
    recorder.step(0)
    recorder.flush()
    assert all(map(torch.equal, before, (p.grad for p in net.parameters())))


def test_every_skips_layer_rows_but_not_iterations() -> None:
    net = small_net()
    sink, _ = record(net, [net(torch.randn(2, 5)).sum() for _ in range(6)], every=2)
    assert sorted(set(sink.column("layer_stats", "iteration").tolist())) == [0, 2, 4]
    assert sink.column("iterations", "iteration").tolist() == list(range(6))
    assert np.ma.getmaskarray(sink.column("iterations", "grad_norm")).tolist() == [False, True] * 3


def test_flushes_when_full() -> None:
    net = small_net()
    sink = MemorySink()
    recorder = Recorder(group_layers(net), sink, flush_every=4)
    for iteration in range(10):
        net.zero_grad()
        net(torch.randn(2, 5)).sum().backward()
        recorder.step(iteration)
        recorder.flush_if_due()
    assert sink.published == 2


def test_a_step_that_the_loss_scaler_skips_is_an_event_and_no_spike() -> None:
    model, sink = torch.nn.Linear(3, 2), MemorySink()
    recorder = Recorder(group_layers(model), sink, amp_skips=True, signals=SIGNALS)
    for iteration in range(3):
        for p in model.parameters():
            p.grad = torch.full_like(p, float("inf") if iteration == 1 else 1.0)
        recorder.step(iteration, loss=1.0)
    recorder.flush()
    missing = np.ma.getmaskarray(sink.column("layer_stats", "grad_norm")).reshape(3, -1).all(axis=1)
    assert missing.tolist() == [False, True, False]
    assert not np.ma.getmaskarray(sink.column("layer_stats", "weight_norm")).any()
    assert [(t, kind) for t, kind, _ in sink.events] == [(1, "amp-skip")]


def test_a_skip_at_the_edge_of_a_flush_and_what_it_keeps() -> None:
    model, sink = torch.nn.Linear(3, 2), MemorySink()
    signals = ("grad_norm", "nonfinite", "update_ratio")
    layers = group_layers(model)
    recorder = Recorder(layers, sink, amp_skips=True, signals=signals, flush_every=1)
    for iteration in range(3):
        for p in model.parameters():
            p.grad = torch.full_like(p, float("inf") if iteration == 1 else 1.0)
        recorder.step(iteration)
        recorder.flush_if_due()
    recorder.close()
    assert [list(block["iteration"]) for block in sink.tables["iterations"] if "grad_norm" in block] == [[0], [2]]
    assert sink.column("iterations", "iteration").tolist() == [0, 1, 2]
    assert sink.column("layer_stats", "nonfinite").reshape(3, -1).max(axis=1).tolist() == [0, 1, 0]
    assert sink.column("layer_stats", "update_ratio").tolist() == [0] * len(sink.column("layer_stats", "update_ratio"))
    assert [(t, kind) for t, kind, _ in sink.events] == [(1, "amp-skip")]


def test_the_share_of_nan_alone_tells_a_skip() -> None:
    model, sink = torch.nn.Linear(3, 2), MemorySink()
    recorder = Recorder(group_layers(model), sink, amp_skips=True, signals=("nonfinite",))
    for p in model.parameters():
        p.grad = torch.full_like(p, math.nan)
    recorder.step(4)
    recorder.flush()
    assert [(t, kind) for t, kind, _ in sink.events] == [(4, "amp-skip")]


def test_a_layer_that_is_unfrozen_later_has_rows_from_then_on() -> None:
    net, sink = small_net(), MemorySink()
    net[0].requires_grad_(False)
    recorder = Recorder(group_layers(net), sink, signals=SIGNALS, flush_every=2)
    for iteration in range(6):
        net[0].requires_grad_(iteration >= 2)
        net.zero_grad()
        net(torch.randn(2, 5)).pow(2).sum().backward()
        recorder.step(iteration)
        recorder.flush_if_due()
    ids = sink.column("layer_stats", "layer_id")
    assert sink.column("layer_stats", "iteration")[ids == 0].tolist() == [2, 3, 4, 5]
    assert not np.ma.getmaskarray(sink.column("layer_stats", "grad_norm")).any()


def test_a_flush_that_fails_does_not_write_twice() -> None:
    class Failing(MemorySink):
        def append(self, table: str, columns: Mapping[str, object]) -> None:
            super().append(table, columns)
            if table == "iterations" and self.published == 0:
                self.published = 1
                raise OSError("no")

    net, sink = small_net(), Failing()
    recorder = Recorder(group_layers(net), sink)
    net(torch.randn(2, 5)).sum().backward()
    recorder.step(0)
    with pytest.raises(OSError, match="no"):
        recorder.flush()
    recorder.step(1)
    recorder.close()
    assert sink.column("iterations", "iteration").tolist() == [0, 1]
    assert sink.column("layer_stats", "iteration").tolist() == [0] * 3 + [1] * 3


def test_a_signal_that_nothing_gives_is_said_once() -> None:
    net, sink = small_net(), MemorySink()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    recorder = Recorder(group_layers(net), sink, signals=("adam_rms",), optimizer=sgd, flush_every=2)
    net(torch.randn(2, 5)).sum().backward()
    recorder.step(0)
    recorder.step(1)
    with pytest.warns(UserWarning, match="adam_rms was never measured"):
        recorder.flush()
    for iteration in range(2, 6):
        recorder.step(iteration)
        recorder.flush_if_due()
    assert [kind for _, kind, _ in sink.events] == ["not-measured"]


@pytest.mark.slow
def test_memory_is_flat_over_100000_steps() -> None:
    import tracemalloc

    class Nowhere(MemorySink):
        def append(self, table: str, columns: Mapping[str, object]) -> None: ...

    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)])
    recorder = Recorder(group_layers(net), Nowhere(), flush_every=100)
    net(torch.randn(2, 2)).sum().backward()
    tracemalloc.start()
    sizes = []
    for iteration in range(100_000):
        if iteration % 3 == 0:  # the set of parameters with a gradient changes
            list(net.parameters())[iteration % 5].grad = None
        elif iteration % 3 == 1:
            for p in net.parameters():
                p.grad = torch.ones_like(p)
        recorder.step(iteration, loss=1.0)
        recorder.flush_if_due()
        if iteration % 20_000 == 19_950:
            sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(sizes) - sizes[0] < 100_000, sizes
