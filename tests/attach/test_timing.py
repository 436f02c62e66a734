"""When gradients are measured: the true norm, whether the loop clips, applies, zeroes or frees them first."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stabilitylab
from stabilitylab import RecordError
from stabilitylab.store.reader import open_run

STEPS, EVERY = 40, 10
Loop = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Any], None]


def loss_of(model: nn.Module, i: int) -> Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(i))
    return model(x).square().mean() * (50 if i % EVERY == EVERY - 1 else 1)


def clip(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)


def clips_before(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rec: Any) -> None:
    loss.backward()
    clip(model)
    rec.step(loss=loss)
    optimizer.step()
    optimizer.zero_grad()


def clips_values_before(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rec: Any) -> None:
    loss.backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.001)
    rec.step(loss=loss)
    optimizer.step()
    optimizer.zero_grad()


def another_loss_after_the_update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rec: Any) -> None:
    """The discriminator of a GAN: the generator's loss reaches it after its own update."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    (7 * loss_of(model, 99)).backward()
    rec.step(loss=loss)


def sets_by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rec: Any) -> None:
    """The gradients of two tasks, combined by hand, as in gradient surgery; recorded when they are gone."""
    for part in (0.25, 0.75):
        grads = torch.autograd.grad(part * loss, list(model.parameters()), retain_graph=True)
        for p, grad in zip(model.parameters(), grads, strict=True):
            p.grad = grad if p.grad is None else p.grad + grad
    optimizer.step()
    optimizer.zero_grad()
    rec.step(loss=loss)


def warms_up(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rec: Any) -> None:
    """Records from the fifth iteration on, before the update."""
    loss.backward()
    count = model.__dict__["count"] = model.__dict__.get("count", 0) + 1
    if count > 4:
        rec.step(loss=loss, iteration=count - 1)
    optimizer.step()
    optimizer.zero_grad()


def steps_before(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rec: Any) -> None:
    loss.backward()
    clip(model)
    optimizer.step()
    rec.step(loss=loss)
    optimizer.zero_grad()


def zeroes_before(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rec: Any) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    rec.step(loss=loss)


def frees_before(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rec: Any) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    rec.step(loss=loss)


def averages(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rec: Any) -> None:
    """Ordinary: the gradient of four times the loss is divided by four."""
    (4 * loss).backward()
    for p in model.parameters():
        assert p.grad is not None
        p.grad /= 4
    rec.step(loss=loss)
    optimizer.step()
    optimizer.zero_grad()


def ordinary(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rec: Any) -> None:
    loss.backward()
    rec.step(loss=loss)
    clip(model)
    optimizer.step()
    optimizer.zero_grad()


def native_scaler(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rec: Any) -> None:
    """timm's: backward, unscale, clip and step in one call."""
    from timm.utils import NativeScaler

    scaler = model.__dict__.setdefault("scaler", NativeScaler(device="cpu"))
    scaler(loss, optimizer, clip_grad=0.01, parameters=list(model.parameters()))
    rec.step(loss=loss)
    optimizer.zero_grad()


def in_backward(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rec: Any) -> None:
    """The optimizer steps each parameter as its gradient arrives, and frees it."""
    loss.backward()
    rec.step(loss=loss)


def train(loop: Loop, tmp_path: Path, steps: int = STEPS, **options: Any) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Recorded and true norms (iterations, layers), and the kinds of events."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    each = {p: torch.optim.SGD([p], 0.01) for p in model.parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    if loop is in_backward:
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(lambda p: (each[p].step(), setattr(p, "grad", None), None)[-1])
    true = []
    with stabilitylab.record(model, optimizer, run="r", runs_dir=tmp_path, **options) as rec:
        for i in range(steps):
            loss = loss_of(model, i)
            grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            true.append([torch.cat([g.flatten().double() for g in grads[k : k + 2]]).norm().item() for k in (0, 2)])
            loop(model, optimizer, loss, rec)
    assert rec.path is not None
    with open_run(rec.path) as reader:
        assert reader.verify() == []
        series = reader.layer_series()
        norms = np.stack([series[i][1] for i in sorted(series)], 1)
        return norms, np.array(true)[series[0][0]], [e.kind for e in reader.events()]


@pytest.mark.parametrize(
    "loop",
    [
        ordinary,
        averages,
        clips_before,
        clips_values_before,
        steps_before,
        zeroes_before,
        frees_before,
        native_scaler,
        in_backward,
        another_loss_after_the_update,
        warms_up,
        sets_by_hand,
    ],
    ids=lambda f: f.__name__,
)
def test_the_norms_are_those_of_the_gradient_in_every_iteration(loop: Loop, tmp_path: Path) -> None:
    recorded, true, events = train(loop, tmp_path)
    np.testing.assert_allclose(recorded, true, rtol=1e-4)
    quiet = loop in (ordinary, averages, warms_up)
    assert ("measured-in-backward" in events) is not quiet


def test_clipping_that_is_asked_to_stay_is_told_within_20_iterations(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"gradient norm is 0\.01 in \d+ of 16 iterations: gradients are clipped"):
        recorded, _, events = train(clips_before, tmp_path, steps=20, measure="step")
    np.testing.assert_allclose(np.linalg.norm(recorded, axis=1), 0.01, rtol=1e-3)
    assert "clipped" in events


def test_zeroes_that_are_asked_to_stay_are_told_within_20_iterations(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="every gradient is zero at rec.step"):
        _, _, events = train(zeroes_before, tmp_path, steps=20, measure="step")
    assert "zero-gradient" in events


def test_clipping_that_begins_after_the_trial_is_measured_in_backward_from_then_on(tmp_path: Path) -> None:
    def later(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rec: Any) -> None:
        (clips_before if rec.iteration >= 30 else ordinary)(model, optimizer, loss, rec)

    with pytest.warns(UserWarning, match="gradients are clipped before"):
        recorded, true, events = train(later, tmp_path, steps=120, flush_every=20)
    np.testing.assert_allclose(recorded[:30], true[:30], rtol=1e-4)
    np.testing.assert_allclose(recorded[-20:], true[-20:], rtol=1e-4)
    assert events.count("clipped") == events.count("measured-in-backward") == 1


def test_one_gradient_again_and_again_is_not_called_clipped(tmp_path: Path) -> None:
    def same(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, rec: Any) -> None:
        loss_of(model, 0).backward()
        rec.step()
        model.zero_grad()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(same, tmp_path)


def test_norms_that_an_engine_computes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    with stabilitylab.record(model, run="r", runs_dir=tmp_path) as rec:
        for i in range(5):
            rec.step(loss=1.0, norms={"0": 1.0 + i, "1": torch.tensor(2.0)})
        with pytest.raises(RecordError, match="norms= names 'blocks', which is not a layer; the layers are 0, 1"):
            rec.step(norms={"blocks": 1.0})
        with pytest.raises(RecordError, match="norms= contains -1; a gradient norm must not be negative"):
            rec.step(norms={"0": -1.0})
    assert rec.path is not None
    with open_run(rec.path) as reader:
        series = reader.layer_series()
        np.testing.assert_allclose(series[0][1], [1, 2, 3, 4, 5])
        np.testing.assert_allclose(series[1][1], 2)
        np.testing.assert_allclose(reader.table("iterations")["grad_norm"], np.hypot(np.arange(1, 6), 2), rtol=1e-6)


def test_a_run_that_recorded_nothing_says_so(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="no iterations were recorded in r, because there was no optimizer step"),
        stabilitylab.record(nn.Linear(2, 2), run="r", runs_dir=tmp_path) as rec,
    ):
        pass
    assert rec.path is not None
    with open_run(rec.path) as reader:
        assert reader.status == "finished"
        assert [event.kind for event in reader.events()] == ["nothing-recorded"]


def test_no_hook_stays(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with stabilitylab.record(model, optimizer, run="r", runs_dir=tmp_path) as rec:
        ordinary(model, optimizer, loss_of(model, 0), rec)
    assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())
    assert not optimizer._optimizer_step_pre_hooks


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Tensor:  # type: ignore[override]
        raise RuntimeError("out of memory")


def test_a_backward_pass_that_failed_does_not_end_the_recording(tmp_path: Path) -> None:
    """A loop that skips batches for which memory does not suffice, and records after the update."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    true = []
    with stabilitylab.record(model, optimizer, run="r", runs_dir=tmp_path) as rec:
        for i in range(12):
            if i % 5 == 3:
                with pytest.raises(RuntimeError, match="out of memory"):
                    model[2](Fails.apply(model[:2](torch.ones(1, 4)))).sum().backward()  # after model[2]'s gradient
                optimizer.zero_grad()
            loss = loss_of(model, i)
            loss.backward()
            true.append(float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])))
            optimizer.step()
            optimizer.zero_grad()
            rec.step(loss=loss)
    assert rec.path is not None
    with open_run(rec.path) as reader:
        np.testing.assert_allclose(reader.table("iterations")["grad_norm"], true, rtol=1e-5)


def test_recording_keeps_no_variable_of_the_loop_alive(tmp_path: Path) -> None:
    """The search for a loss scaler on the call stack must not hold the user's batch."""
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with stabilitylab.record(model, optimizer, run="r", runs_dir=tmp_path) as rec:
        loss = loss_of(model, 0)
        alive = weakref.ref(loss)
        loss.backward()
        rec.step()
        optimizer.step()
        del loss
        assert alive() is None


def test_parameters_that_were_replaced_after_record_are_told(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    text = r"2 parameters of the model are not recorded \(the first is 2\.weight\).*call record\(\) when the model is"
    with stabilitylab.record(model, run="r", runs_dir=tmp_path) as rec:
        model[2] = nn.Linear(8, 2)
        loss_of(model, 0).backward()
        with pytest.warns(UserWarning, match=text):
            rec.step()
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    with stabilitylab.record(model, run="s", runs_dir=tmp_path) as rec:
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
        loss_of(model, 0).backward()
        with pytest.raises(RecordError, match="4 parameters of the model are not recorded"):
            rec.step()


def test_every_nth_iteration_after_the_gradients_are_gone(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    true = {}
    with stabilitylab.record(model, optimizer, run="r", runs_dir=tmp_path, every=4) as rec:
        for i in range(20):
            loss = loss_of(model, i)
            loss.backward()
            true[i] = float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
            optimizer.step()
            optimizer.zero_grad()
            rec.step(loss=loss)
    assert rec.path is not None
    with open_run(rec.path) as reader:
        rows = reader.table("iterations")
    assert len(rows["iteration"]) == 20
    np.testing.assert_allclose(rows["grad_norm"][::4], [true[i] for i in range(0, 20, 4)], rtol=1e-5)
    assert np.isnan(np.asarray(rows["grad_norm"], float)).sum() == 15
