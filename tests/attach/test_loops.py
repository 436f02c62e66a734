"""Training loops of many kinds: the recorded norm is that of the gradient that the update uses, before any clipping."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import stabilitylab
from stabilitylab.store.reader import open_run

STEPS = 20


class Net(nn.Module):
    """Two layers, ``a`` and ``b``; ``reentrant`` recomputes both in the backward pass."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.a, self.b, self.reentrant = nn.Linear(4, 8), nn.Linear(8, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.b(self.a(x).tanh())
        x = checkpoint(lambda x: self.a(x).tanh(), x.requires_grad_(), use_reentrant=self.reentrant)
        return checkpoint(self.b, x, use_reentrant=self.reentrant)


def batch(i: int) -> Tensor:
    drawn = torch.randn(8, 4, generator=torch.Generator("cpu").manual_seed(i), device="cpu")
    return drawn.to(torch.get_default_device()) * (5 if i % 10 == 9 else 1)


def loss_of(model: nn.Module, i: int) -> Tensor:
    return model(batch(i)).float().square().mean()


def norms_of(model: nn.Module, loss: Tensor) -> list[float]:
    """The norms of the layers ``a`` and ``b``, by plain autograd; NaN without a gradient."""
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    squares = dict.fromkeys("ab", float("nan"))
    for name, grad in zip(names, grads, strict=True):
        if grad is not None:
            layer = name.removeprefix("module.")[0]
            squares[layer] = np.nan_to_num(squares[layer]) + float(grad.double().square().sum())
    return [squares["a"] ** 0.5, squares["b"] ** 0.5]


Truth = list[list[float]]
Loop = Callable[[Path], tuple[Truth, Any]]
LOOPS: dict[str, Loop] = {}


def loop(function: Loop) -> Loop:
    LOOPS[function.__name__] = function
    return function


def start(path: Path, model: nn.Module, optimizer: Any, **options: Any) -> Any:
    return stabilitylab.record(model, optimizer, run="r", runs_dir=path, **options)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


@loop
def accumulation(path: Path) -> tuple[Truth, Any]:
    model, true = Net(), []
    optimizer = adamw(model)
    with start(path, model, optimizer) as rec:
        for i in range(STEPS):
            true.append(norms_of(model, (loss_of(model, 2 * i) + loss_of(model, 2 * i + 1)) / 2))
            for k in (0, 1):
                (loss_of(model, 2 * i + k) / 2).backward()
            rec.step()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    return true, rec


@loop
def accumulation_clipped_before(path: Path) -> tuple[Truth, Any]:
    model, true = Net(), []
    optimizer = adamw(model)
    with start(path, model, optimizer) as rec:
        for i in range(STEPS):
            true.append(norms_of(model, (loss_of(model, 2 * i) + loss_of(model, 2 * i + 1)) / 2))
            for k in (0, 1):
                (loss_of(model, 2 * i + k) / 2).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.001)
            rec.step()
            optimizer.step()
            optimizer.zero_grad()
    return true, rec


def scaled(path: Path, how: str) -> tuple[Truth, Any]:
    model, true = Net(), []
    optimizer, scaler = adamw(model), torch.amp.GradScaler(torch.get_default_device().type)
    with start(path, model, optimizer) as rec:
        for i in range(STEPS):
            loss = loss_of(model, i)
            true.append(norms_of(model, loss))
            scaler.scale(loss).backward()
            if how == "unscaled":
                scaler.unscale_(optimizer)
            if how != "after":
                rec.step(loss=loss, grad_scale=scaler.get_scale() if how == "told" else None)
            if how == "unscaled":
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
            if how == "after":
                rec.step(loss=loss)
            optimizer.zero_grad()
    return true, rec


@loop
def scaler_unscaled(path: Path) -> tuple[Truth, Any]:
    return scaled(path, "unscaled")


@loop
def scaler_told(path: Path) -> tuple[Truth, Any]:
    return scaled(path, "told")


@loop
def scaler_not_told(path: Path) -> tuple[Truth, Any]:
    return scaled(path, "not told")


@loop
def scaler_stepped_before(path: Path) -> tuple[Truth, Any]:
    return scaled(path, "after")


@loop
def zeroes_at_the_start(path: Path) -> tuple[Truth, Any]:
    model, true = Net(), []
    optimizer = adamw(model)
    with start(path, model, optimizer) as rec:
        for i in range(STEPS):
            optimizer.zero_grad(set_to_none=False)
            loss = loss_of(model, i)
            true.append(norms_of(model, loss))
            loss.backward()
            rec.step(loss=loss)
            optimizer.step()
    return true, rec


@loop
def records_after_the_step(path: Path) -> tuple[Truth, Any]:
    model, true = Net(), []
    optimizer = adamw(model)
    with start(path, model, optimizer) as rec:
        for i in range(STEPS):
            optimizer.zero_grad()
            loss = loss_of(model, i)
            true.append(norms_of(model, loss))
            loss.backward()
            optimizer.step()
            rec.step(loss=loss)
    return true, rec


@loop
def two_losses(path: Path) -> tuple[Truth, Any]:
    model, true = Net(), []
    optimizer = adamw(model)
    with start(path, model, optimizer) as rec:
        for i in range(STEPS):
            first, second = loss_of(model, i), 0.1 * loss_of(model, i + 1000)
            true.append(norms_of(model, first + second))
            first.backward()
            second.backward()
            rec.step(loss=first)
            optimizer.step()
            optimizer.zero_grad()
    return true, rec


@loop
def adversarial(path: Path) -> tuple[Truth, Any]:
    """Two optimizers take turns; the other layer's gradient is not of this step."""
    model, true = Net(), []
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (model.a, model.b)]
    with start(path, model, None) as rec:
        for i in range(STEPS // 2):
            for k, optimizer in enumerate(optimizers):
                loss = loss_of(model, 2 * i + k)
                norms = norms_of(model, loss)
                norms[1 - k] = float("nan")
                true.append(norms)
                optimizer.zero_grad()
                loss.backward()
                rec.step(loss=loss, optimizer=optimizer)
                optimizer.step()
    return true, rec


def checkpointed(path: Path, reentrant: bool, measure: str) -> tuple[Truth, Any]:
    model, true = Net(reentrant), []
    plain = Net()
    optimizer = adamw(model)
    with start(path, model, optimizer, measure=measure) as rec:
        for i in range(STEPS):
            plain.load_state_dict(model.state_dict())
            true.append(norms_of(plain, loss_of(plain, i)))
            loss = loss_of(model, i)
            loss.backward()
            rec.step(loss=loss)
            optimizer.step()
            optimizer.zero_grad()
    return true, rec


for reentrant in (True, False):
    for measure in ("auto", "backward"):
        LOOPS[f"checkpointed-{reentrant}-{measure}"] = lambda path, r=reentrant, m=measure: checkpointed(path, r, m)


@loop
def alternating_freezing(path: Path) -> tuple[Truth, Any]:
    model, true = Net(), []
    optimizer = adamw(model)
    with start(path, model, optimizer) as rec:
        for i in range(STEPS):
            model.a.requires_grad_(i // 5 % 2 == 0)
            loss = loss_of(model, i)
            true.append(norms_of(model, loss))
            loss.backward()
            rec.step(loss=loss)
            optimizer.step()
            optimizer.zero_grad()
    return true, rec


@loop
def thawed_and_measured_in_backward(path: Path) -> tuple[Truth, Any]:
    """What trains at first is frozen later, and the other way round."""
    model, true = Net(), []
    optimizer = adamw(model)
    model.a.requires_grad_(False)
    with start(path, model, optimizer, measure="backward") as rec:
        for i in range(STEPS):
            model.a.requires_grad_(i >= 8)
            model.b.requires_grad_(i < 8)
            loss = loss_of(model, i)
            true.append(norms_of(model, loss))
            loss.backward()
            rec.step(loss=loss)
            optimizer.step()
            optimizer.zero_grad()
    return true, rec


@loop
def closure(path: Path) -> tuple[Truth, Any]:
    """L-BFGS: an iteration's gradient is that with which its search begins."""
    model, true = Net(), []
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    with start(path, model, optimizer) as rec:
        for i in range(STEPS):

            def evaluate(i: int = i) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, i)
                loss.backward()
                return loss

            true.append(norms_of(model, loss_of(model, i)))
            evaluate()
            rec.step()
            optimizer.step(evaluate)
    return true, rec


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation (arXiv 2010.01412), as its usual implementation has it."""

    def __init__(self, params: Any, base: type, rho: float = 0.5, **options: Any) -> None:
        super().__init__(params, dict(rho=rho, **options))
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        for p in parameters:
            self.state[p]["old"] = p.clone()
            p.add_(p.grad * self.param_groups[0]["rho"] / norm)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        for p, state in self.state.items():
            if "old" in state:
                p.copy_(state.pop("old"))
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        closure = torch.enable_grad()(closure)
        self.first_step(zero_grad=True)
        closure()
        self.second_step()


def sharpness_aware(path: Path, how: str) -> tuple[Truth, Any]:
    """The gradient that is applied is that at the perturbed weights."""
    model, true = Net(), []
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.05)
    with start(path, model, optimizer, signals=("grad_norm", "update_ratio")) as rec:
        for i in range(STEPS):
            other, loss = copy.deepcopy(model), loss_of(model, i)
            moved = torch.autograd.grad(loss_of(other, i), list(other.parameters()))
            norm = torch.stack([g.norm() for g in moved]).norm()
            with torch.no_grad():
                for p, g in zip(other.parameters(), moved, strict=True):
                    p += 0.5 * g / norm
            true.append(norms_of(other, loss_of(other, i)))
            loss.backward()
            if how == "two steps":
                optimizer.first_step(zero_grad=True)
                loss_of(model, i).backward()
                rec.step(loss=loss)
                optimizer.second_step(zero_grad=True)
                continue
            if how == "before":
                rec.step(loss=loss)
            optimizer.step(lambda i=i: loss_of(model, i).backward())
            if how == "after":
                rec.step(loss=loss)
            optimizer.zero_grad()
    return true, rec


for how in ("two steps", "before", "after"):
    LOOPS[f"sam {how}"] = lambda path, how=how: sharpness_aware(path, how)


@loop
def functional(path: Path) -> tuple[Truth, Any]:
    """torch.func: no backward pass of autograd's engine fills .grad."""
    model, true = Net(), []
    optimizer = adamw(model)

    def loss_at(weights: dict[str, Tensor], i: int) -> Tensor:
        return torch.func.functional_call(model, weights, batch(i)).square().mean()

    with start(path, model, optimizer) as rec:
        for i in range(STEPS):
            true.append(norms_of(model, loss_of(model, i)))
            grads = torch.func.grad(loss_at)({n: p.detach() for n, p in model.named_parameters()}, i)
            for name, p in model.named_parameters():
                p.grad = grads[name].detach()
            rec.step()
            optimizer.step()
            optimizer.zero_grad()
    return true, rec


@loop
def half(path: Path) -> tuple[Truth, Any]:
    model, true = Net().to(torch.bfloat16), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with start(path, model, optimizer) as rec:
        for i in range(STEPS):
            loss = model(batch(i).bfloat16()).float().square().mean()
            true.append(norms_of(model, loss))
            loss.backward()
            rec.step(loss=loss)
            optimizer.step()
            optimizer.zero_grad()
    return true, rec


@loop
def accelerated(path: Path) -> tuple[Truth, Any]:
    accelerate = pytest.importorskip("accelerate")
    engine = accelerate.Accelerator(cpu=torch.get_default_device().type == "cpu", gradient_accumulation_steps=2)
    model, true = Net(), []
    optimizer = adamw(model)
    model, optimizer = engine.prepare(model, optimizer)
    with start(path, model, optimizer) as rec:
        for i in range(2 * STEPS):
            with engine.accumulate(model):
                if i % 2 == 0:
                    true.append(norms_of(model, (loss_of(model, i) + loss_of(model, i + 1)) / 2))
                loss = loss_of(model, i)
                engine.backward(loss)
                if engine.sync_gradients:
                    rec.step(loss=loss)
                    engine.clip_grad_norm_(model.parameters(), 0.01)
                optimizer.step()
                optimizer.zero_grad()
    return true, rec


@loop
def hook_on_the_optimizer(path: Path) -> tuple[Truth, Any]:
    """The loop of timm's NativeScaler, which clips and steps in one call; recorded in a hook on the optimizer."""
    from timm.utils import NativeScaler

    model, true = Net(), []
    optimizer, scaler = adamw(model), NativeScaler(device=torch.get_default_device().type)
    with start(path, model, optimizer) as rec:
        optimizer.register_step_pre_hook(lambda *_: rec.step())
        for i in range(STEPS):
            loss = loss_of(model, i)
            true.append(norms_of(model, loss))
            scaler(loss, optimizer, clip_grad=0.01, parameters=model.parameters())
            optimizer.zero_grad()
    return true, rec


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", LOOPS)
def test_the_norm_is_that_of_the_gradient_that_is_applied(name: str, device: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with torch.device(device):
        true, rec = LOOPS[name](tmp_path)
    with open_run(rec.path) as reader:
        assert reader.verify() == []
        names = {row.layer_id: row.name for row in reader.layers()}
        assert sorted(names.values()) == ["a", "b"]
        recorded = np.full((len(true), 2), np.nan)
        for layer_id, (iteration, values) in reader.layer_series().items():
            recorded[iteration, "ab".index(names[layer_id])] = values
    np.testing.assert_allclose(recorded, true, rtol=1e-2 if name == "half" else 1e-4)
