"""``stabilitylab.record`` in other people's loops: the norms of plain autograd, nothing changed, nothing left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stabilitylab
from stabilitylab import RecordError, record
from stabilitylab.errors import RunExists
from stabilitylab.signals import BUILT_IN
from stabilitylab.store.reader import open_run

ALL = ("grad_norm", "grad_max", "weight_norm", "nonfinite", "adam_rms", "update_ratio")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.head(x)  # type: ignore[no-any-return]


def batch(i: int) -> Tensor:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(i))


def plain(groups: dict[str, list[nn.Parameter]]) -> dict[str, float]:
    """Norms by plain autograd: all entries of a layer in one vector."""
    found = {}
    for name, parameters in groups.items():
        grads = [p.grad.flatten().double() for p in parameters if p.grad is not None]
        if grads:
            found[name] = torch.cat(grads).norm().item()
    return found


def series(path: Path, signal: str = "grad_norm") -> dict[str, np.ndarray]:
    with open_run(path) as reader:
        assert reader.verify() == []
        names = {row.layer_id: row.name for row in reader.layers()}
        return {names[i]: values for i, (_, values) in reader.layer_series(signal).items()}


def groups_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    groups: dict[str, list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            parts = [part for part in name.split(".") if part not in ("_orig_mod", "module")]
            groups.setdefault(".".join(parts[:2]) if parts[0] == "blocks" else parts[0], []).append(p)
    return groups


Step = Callable[[nn.Module, torch.optim.Optimizer, int, Any], dict[str, float]]


def ordinary(model: nn.Module, optimizer: torch.optim.Optimizer, i: int, rec: Any) -> dict[str, float]:
    model(batch(i)).square().mean().backward()
    truth = plain(groups_of(model))
    rec.step()
    optimizer.step()
    optimizer.zero_grad()
    return truth


def accumulating(model: nn.Module, optimizer: torch.optim.Optimizer, i: int, rec: Any) -> dict[str, float]:
    for part in batch(i).chunk(4):
        (model(part).square().mean() / 4).backward()
    truth = plain(groups_of(model))
    rec.step()
    optimizer.step()
    optimizer.zero_grad()
    return truth


def clipping(model: nn.Module, optimizer: torch.optim.Optimizer, i: int, rec: Any) -> dict[str, float]:
    model(batch(i)).square().mean().backward()
    truth = plain(groups_of(model))
    rec.step()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    return truth


def clipped_before(model: nn.Module, optimizer: torch.optim.Optimizer, i: int, rec: Any) -> dict[str, float]:
    model(batch(i)).square().mean().backward()
    truth = plain(groups_of(model))  # what is recorded is the gradient, not what clipping leaves of it
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    rec.step()
    optimizer.step()
    optimizer.zero_grad()
    return truth


def scaled(model: nn.Module, optimizer: torch.optim.Optimizer, i: int, rec: Any) -> dict[str, float]:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model(batch(i)).square().mean().backward()
    truth = plain(groups_of(model))
    optimizer.zero_grad()
    scaler.scale(model(batch(i)).square().mean()).backward()
    if i % 2:
        rec.step(grad_scale=scaler.get_scale())
    else:
        scaler.unscale_(optimizer)
        rec.step()
    scaler.step(optimizer)
    optimizer.zero_grad()
    return truth


def used_twice(model: nn.Module, optimizer: torch.optim.Optimizer, i: int, rec: Any) -> dict[str, float]:
    assert isinstance(model, Net)
    x = model.blocks[0](model.blocks[0](model.stem(batch(i))))
    for block in model.blocks[1:]:
        x = block(x)
    model.head(x).square().mean().backward()
    truth = plain(groups_of(model))
    rec.step()
    optimizer.step()
    optimizer.zero_grad()
    return truth


@pytest.mark.parametrize(
    "step", [ordinary, accumulating, clipping, clipped_before, scaled, used_twice], ids=lambda s: s.__name__
)
def test_norms_are_those_of_plain_autograd(step: Step, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    truths = []
    with stabilitylab.record(model, optimizer, run="r", runs_dir=tmp_path, flush_every=3) as rec:
        truths = [step(model, optimizer, i, rec) for i in range(7)]
    found = series(tmp_path / "r")
    assert found.keys() == truths[0].keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, [truth[name] for truth in truths], rtol=1e-5, err_msg=name)


def test_layers_without_a_gradient_frozen_layers_and_tied_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net()
    model.blocks[1].weight = model.blocks[0].weight  # tied: counted once, with the first
    model.blocks[2].requires_grad_(False)
    model.head.bias.grad = None
    with stabilitylab.record(model, run="r", runs_dir=tmp_path) as rec:
        for i in range(4):
            model.zero_grad()
            out = model.stem(batch(i)) if i == 2 else model(batch(i))  # iteration 2 reaches the stem alone
            out.square().mean().backward()
            truth = plain(groups_of(model))
            rec.step()
    with open_run(tmp_path / "r") as reader:
        layers = {row.name: row for row in reader.layers()}
        assert layers["blocks.2"].trainable is False
        recorded = reader.layer_series()
        assert layers["blocks.2"].layer_id not in recorded
        assert recorded[layers["stem"].layer_id][0].tolist() == [0, 1, 2, 3]
        assert recorded[layers["head"].layer_id][0].tolist() == [0, 1, 3]
        norms = recorded[layers["blocks.0"].layer_id][1]
    assert norms[-1] == pytest.approx(truth["blocks.0"], rel=1e-5)


def test_a_compiled_model_has_the_same_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.compile(Net(), backend="eager")
    with stabilitylab.record(model, run="r", runs_dir=tmp_path) as rec:
        model(batch(0)).square().mean().backward()
        truth = plain(groups_of(model))
        rec.step()
    found = series(tmp_path / "r")
    assert found.keys() == truth.keys() == {"stem", "blocks.0", "blocks.1", "blocks.2", "head"}
    for name, values in found.items():
        assert values[0] == pytest.approx(truth[name], rel=1e-5)


def test_training_is_bit_identical_with_and_without(tmp_path: Path) -> None:
    def train(signals: tuple[str, ...] | None) -> list[Tensor]:
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        name = f"r{len(signals or ())}"
        rec = stabilitylab.record(model, optimizer, run=name, runs_dir=tmp_path, signals=signals) if signals else None
        for i in range(50):
            loss = model(batch(i)).square().mean() + 0.1 * torch.rand(())
            loss.backward()
            if rec is not None:
                rec.step(loss=loss, lr=1e-2)
            optimizer.step()
            optimizer.zero_grad()
        if rec is not None:
            rec.close()
            assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
            assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
        return [p.detach().clone() for p in model.parameters()]

    without = train(None)
    for signals in (("grad_norm", "grad_max", "weight_norm"), (*ALL, "activation_max")):
        assert all(map(torch.equal, without, train(signals)))


def test_every_signal_against_its_formula(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    expected: dict[str, list[float]] = {name: [] for name in (*ALL, "activation_max")}
    v = {p: torch.zeros_like(p) for p in model.stem.parameters()}
    with stabilitylab.record(model, optimizer, run="r", runs_dir=tmp_path, signals=tuple(expected)) as rec:
        for i in range(6):
            activation = model.stem(batch(i)).abs().max().item()
            model(batch(i)).square().mean().backward()
            if i == 3:
                model.stem.bias.grad[2] = float("inf")  # type: ignore[index]
            grads = torch.cat([p.grad.flatten() for p in model.stem.parameters() if p.grad is not None])
            weights = torch.cat([p.detach().flatten() for p in model.stem.parameters()])
            rms = []
            for p in v:
                assert p.grad is not None
                v[p] = 0.999 * v[p] + 0.001 * p.grad**2
                rms.append((p.grad**2 / (v[p] / (1 - 0.999 ** (i + 1))).clamp(min=1e-16)).flatten())
            expected["grad_norm"].append(grads.norm().item())
            expected["grad_max"].append(grads.abs().max().item())
            expected["weight_norm"].append(weights.norm().item())
            expected["nonfinite"].append((~grads.isfinite()).float().mean().item())
            expected["adam_rms"].append(torch.cat(rms).mean().sqrt().item())
            expected["activation_max"].append(activation)
            rec.step()
            if i == 3:
                optimizer.zero_grad()
                for p in v:
                    v[p] = optimizer.state[p]["exp_avg_sq"].clone()
            else:
                optimizer.step()
            after = torch.cat([p.detach().flatten() for p in model.stem.parameters()])
            expected["update_ratio"].append(((after - weights).norm() / weights.norm()).item())
            optimizer.zero_grad()
    for name, values in expected.items():
        found = series(tmp_path / "r", name)["stem"]
        upto = 3 if name == "adam_rms" else 6  # a skipped step leaves Adam's own count behind
        np.testing.assert_allclose(found[:upto], values[:upto], rtol=1e-4, atol=1e-7, err_msg=name)


def test_the_largest_attention_logit(tmp_path: Path) -> None:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(img_size=16, patch_size=8, in_chans=1, num_classes=3, embed_dim=16, depth=2, num_heads=2)
    seen: list[float] = []

    def watch(module: nn.Module, inputs: tuple[Tensor]) -> None:
        q, k, _ = module.qkv(inputs[0]).reshape(5, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
        seen.append(max((q[n, h] @ k[n, h].T / 8**0.5).abs().max().item() for n in range(5) for h in range(2)))

    vit.blocks[1].attn.register_forward_pre_hook(watch)
    with stabilitylab.record(vit, run="r", runs_dir=tmp_path, signals=("grad_norm", "attention_max")) as rec:
        for _ in range(3):
            vit(torch.randn(5, 1, 16, 16)).square().mean().backward()
            rec.step()
            vit.zero_grad()
    np.testing.assert_allclose(series(tmp_path / "r", "attention_max")["blocks.1"], seen, rtol=1e-5)


def test_depth_follows_execution_where_names_do_not_tell(tmp_path: Path) -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.middle, self.begin = nn.Linear(4, 1), nn.Linear(4, 4), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.middle(self.begin(x)))  # type: ignore[no-any-return]

    def depths(name: str, **options: Any) -> list[str]:
        model = Backwards()
        with stabilitylab.record(model, run=name, runs_dir=tmp_path, **options) as rec:
            model(batch(0)).sum().backward()
            rec.step()
        with open_run(tmp_path / name) as reader:
            return [row.name for row in sorted(reader.layers(), key=lambda row: row.depth)]

    assert depths("found") == ["begin", "middle", "last"]
    assert depths("given", depth=["middle", "begin", "last"]) == ["middle", "begin", "last"]
    with pytest.raises(RecordError, match="depth= must name every layer once; check 'last'"):
        depths("wrong", depth=["middle", "begin"])


def test_include_exclude_every_and_what_is_logged(tmp_path: Path) -> None:
    model = Net()
    options = {"include": ["blocks.*", "head"], "exclude": "blocks.1", "every": 2}
    with stabilitylab.record(model, run="r", runs_dir=tmp_path, config={"note": "mine"}, **options) as rec:
        for i in range(5):
            loss = model(batch(i)).square().mean()
            loss.backward()
            rec.step(loss=loss, lr=0.1, temperature=float(i))
            if i == 2:
                rec.log(knn_top1=0.75, num_samples=400)
                rec.event("note", "half way")
    with open_run(tmp_path / "r") as reader:
        assert [row.name for row in reader.layers()] == ["blocks.0", "blocks.2", "head"]
        assert {tuple(t.tolist()) for t, _ in reader.layer_series().values()} == {(0, 2, 4)}
        assert reader.table("scalars")["value"].tolist() == [0, 1, 2, 3, 4]
        assert reader.table("iterations")["lr"].tolist() == [0.1] * 5
        assert reader.evals()["knn_top1"]["value"].tolist() == [0.75]
        assert reader.evals()["knn_top1"]["iteration"].tolist() == [3]
        assert (3, "note", "half way") in [(e.iteration, e.kind, e.detail) for e in reader.events()]
        assert reader.config == {"note": "mine"}


def test_resume_goes_on_and_never_mixes(tmp_path: Path) -> None:
    model = Net()

    def part(resume: bool) -> None:
        with stabilitylab.record(model, run="r", runs_dir=tmp_path, resume=resume) as rec:
            for i in range(3):
                model(batch(i)).square().mean().backward()
                rec.step()

    part(resume=False)
    with pytest.raises(RunExists, match=r"resume=True"):
        part(resume=False)
    part(resume=True)
    assert [len(v) for v in series(tmp_path / "r").values()] == [6] * 5
    with pytest.raises(RecordError, match="recorded with other layers"):
        stabilitylab.record(nn.Linear(2, 2), run="r", runs_dir=tmp_path, resume=True)


def test_a_crash_in_the_loop_still_flushes(tmp_path: Path) -> None:
    model = Net()

    def loop() -> None:
        with stabilitylab.record(model, run="r", runs_dir=tmp_path) as rec:
            model(batch(0)).square().mean().backward()
            rec.step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    with open_run(tmp_path / "r") as reader:
        assert (reader.status, reader.num_iterations) == ("crashed", 1)


def test_misuse_is_named(tmp_path: Path) -> None:
    model = Net()

    def start(m: nn.Module = model, **options: Any) -> Any:
        return stabilitylab.record(m, runs_dir=tmp_path, **options)

    with pytest.raises(RecordError, match="unknown signal 'grad'; did you mean grad_max or grad_norm"):
        start(signals=("grad",))
    with pytest.raises(RecordError, match="adam_rms reads the optimizer's state"):
        start(signals=("adam_rms",))
    with pytest.raises(RecordError, match="no trainable parameter"):
        start(nn.ReLU())
    with pytest.raises(RecordError, match="no trainable parameter"):
        start(include="nothing.*")
    assert not list(tmp_path.iterdir())
    rec = start()
    with pytest.raises(RecordError, match=r"after loss.backward\(\)"):
        rec.step()
    with pytest.raises(RecordError, match="val_loss: goal max contradicts its name"):
        rec.log(val_loss=1.0, goal="max")
    with pytest.raises(RecordError, match="goal 'up' is neither max nor min"):
        rec.log(quality=1.0, goal="up")
    rec.close()
    rec.close()
    for use in (rec.step, rec.log, lambda: rec.event("x")):
        with pytest.raises(RecordError, match="is closed"):
            use()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Exception, match="cannot"):
        stabilitylab.record(Net(), runs_dir=tmp_path)


def test_a_metric_is_declared_once_with_its_goal(tmp_path: Path) -> None:
    from stabilitylab.run.series import load_series

    with stabilitylab.record(Net(), run="r", runs_dir=tmp_path) as rec:
        for value in (1.0, 2.0, 3.0):
            rec.log(quality=value, goal="max")
        rec.log(val_top1=83.0, num_samples=100)
    with open_run(tmp_path / "r") as reader:
        series = load_series(reader)
        assert [event.kind for event in reader.events()].count("metric") == 1
    assert series.evals["quality"].goal == "max"
    assert series.evals["val_top1"].value.tolist() == [83.0]


@pytest.mark.parametrize("measure", ["auto", "step", "backward"])
def test_the_default_device_of_the_loop_is_not_ours(measure: str, tmp_path: Path) -> None:
    """Every signal with ``torch.set_default_device``: "meta" stands for a GPU, and fails wherever a tensor is made on
    it."""
    from timm.models.vision_transformer import VisionTransformer

    found = []
    for device in ("cpu", "meta"):
        torch.manual_seed(0)
        model = VisionTransformer(img_size=16, patch_size=8, num_classes=3, embed_dim=32, depth=2, num_heads=2)
        optimizer, x = torch.optim.AdamW(model.parameters()), torch.randn(4, 3, 16, 16)
        model(x).sum().backward()
        optimizer.step()  # makes the optimizer's state on the CPU
        optimizer.zero_grad()
        torch.set_default_device(device)
        try:
            with stabilitylab.record(
                model, optimizer, run=device, runs_dir=tmp_path, signals=BUILT_IN, measure=measure
            ) as rec:
                for _ in range(6):
                    loss = model(x).square().mean()
                    loss.backward()
                    rec.step(loss=loss)
                    optimizer.step()
                    optimizer.zero_grad()
                rec.features(x.flatten(1))
        finally:
            torch.set_default_device(None)
        run = stabilitylab.open_run(tmp_path / device)
        found.append(np.concatenate([run.signal(name).to_numpy().ravel() for name in BUILT_IN]))
    np.testing.assert_array_equal(*found)


def test_arguments_of_the_wrong_type_are_named(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RecordError, match=r"model must be a torch\.nn\.Module, not SGD"):
        record(optimizer, model, runs_dir=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(RecordError, match="optimizer must be a torch optimizer or None, not Linear"):
        record(model, model, runs_dir=tmp_path)  # type: ignore[arg-type]
    with record(model, optimizer, run="r", runs_dir=tmp_path) as rec:
        model(torch.ones(1, 3)).sum().backward()
        for wrong in ("high", [1, 2]):
            with pytest.raises(RecordError, match="loss must be a number, not "):
                rec.step(loss=wrong)  # type: ignore[arg-type]
            with pytest.raises(RecordError, match="acc must be a number, not "):
                rec.log(acc=wrong)  # type: ignore[arg-type]
        rec.step(loss=1.0)
        assert repr(rec) == "<LoopRecorder of run r, 1 iterations>"
