"""Compare our training step with the authors': equal results over five steps, and the time per step.

    python benchmarks/train.py [--quick] [--device cuda] [--compile] [--official DIR]

DIR is a checkout of facebookresearch/moco-v3, whose moco/builder.py is the reference. Without it, the reference is a
step in this file that follows the paper's Algorithm 1. The reference does not log. Both train the same encoder on the
same views with AdamW. Ours is timed with and without recording of all layers, interleaved with the reference, in
processor time on a CPU and wall time on a GPU. With recording, it must take at most 0.9 times as long. ``--compile``
compiles ours.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from stabilitylab.config import Config, resolve
from stabilitylab.recording.recorder import Recorder
from stabilitylab.recording.sink import NullSink
from stabilitylab.store.writer import LayerRow, RunWriter
from stabilitylab.train.trainer import Trainer

Step = Callable[[list[Tensor]], Tensor]
LR, EMA = 1e-3, 0.99


class Reference(nn.Module):
    """The paper's Algorithm 1, line by line: a separate pass of each view through each encoder, EMA per tensor."""

    def __init__(self, method: nn.Module, temperature: float) -> None:
        super().__init__()
        self.m, self.temperature = copy.deepcopy(method), temperature

    def forward(self, x1: Tensor, x2: Tensor, ema: float) -> Tensor:
        m: Any = self.m
        q1, q2 = (m.predictor(m.projector(m.base_encoder(x))) for x in (x1, x2))
        with torch.no_grad():
            for online, averaged in ((m.base_encoder, m.momentum_encoder), (m.projector, m.momentum_projector)):
                for p, k in zip(online.parameters(), averaged.parameters(), strict=True):
                    k.mul_(ema).add_(p, alpha=1 - ema)
            k1, k2 = (m.momentum_projector(m.momentum_encoder(x)) for x in (x1, x2))
        return self.contrast(q1, k2) + self.contrast(q2, k1)

    def contrast(self, q: Tensor, k: Tensor) -> Tensor:
        logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / self.temperature
        return 2 * self.temperature * F.cross_entropy(logits, torch.arange(len(q), device=q.device))

    def named(self) -> dict[str, nn.Parameter]:
        return dict(self.m.named_parameters())


def official(folder: Path, trainer: Trainer) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """The model of the release around our encoder, with our weights, and its parameters by our names."""
    path = folder / "moco" / "builder.py"
    spec = importlib.util.spec_from_file_location("official_builder", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder} holds no moco/builder.py; give a checkout of facebookresearch/moco-v3")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    method, config = trainer.method, trainer.config.method

    def encoder(num_classes: int) -> nn.Module:
        made = copy.deepcopy(method.base_encoder)
        made.head = nn.Linear(method.features, num_classes)  # replaced by the projector
        return made

    model = builder.MoCo_ViT(encoder, config.out_dim, config.hidden_dim, config.temperature)
    named = {}
    for name, parameter in model.named_parameters():
        for theirs, ours in (("base_encoder.head.", "projector."), ("momentum_encoder.head.", "momentum_projector.")):
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        named[name] = parameter
    own = dict(method.named_parameters())
    assert named.keys() == own.keys()
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(own[name])
    return model.to(trainer.device), named


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A process group of size one, which the loss of the release needs. Without a GPU, its `.cuda()` does nothing."""
    for key, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29517")):
        os.environ.setdefault(key, value)
    dist.init_process_group("gloo", rank=0, world_size=1)
    cuda = torch.Tensor.cuda
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.Tensor.cuda = cuda  # type: ignore[method-assign]
        dist.destroy_process_group()


def their_step(model: nn.Module) -> Step:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.1)

    def step(views: list[Tensor]) -> Tensor:
        loss: Tensor = model(views[0], views[1], EMA)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def our_step(trainer: Trainer, recorder: Recorder) -> Step:
    done = 0

    def step(views: list[Tensor]) -> Tensor:
        nonlocal done
        loss = trainer.step(recorder, done, views)
        recorder.flush_if_due()
        done += 1
        return loss

    return step


def settings(device: str, compiled: bool) -> list[Config]:
    """The model of the default recipe and a larger one."""
    large = ("vit_small", 224, 16, 128, 4096) if device == "cuda" else ("vit_tiny", 32, 4, 32, 512)
    found = []
    for arch, size, patch, batch, hidden in (("vit_nano", 16, 4, 128, 256), large):
        values = {
            "model": {"arch": arch, "img_size": size, "patch_size": patch},
            "method": {"hidden_dim": hidden, "out_dim": hidden // 4, "ema_momentum": EMA, "ema_schedule": "constant"},
            "optim": {"base_lr": LR * 256 / batch, "schedule": "constant", "warmup_iterations": 0, "weight_decay": 0.1},
            "train": {"device": device, "iterations": 100_000, "batch_size": batch, "compile": compiled},
        }
        found.append(resolve(values))
    return found


def plain_of(config: Config) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"compile": False})})


def views_for(trainer: Trainer, seed: int) -> list[Tensor]:
    size, batch = trainer.config.model.img_size, trainer.config.train.batch_size
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, batch, trainer.data.channels, size, size, generator=generator)
    return list(both.to(trainer.device))


def theirs(trainer: Trainer, folder: Path | None) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    if folder is not None:
        return official(folder, trainer)
    model = Reference(trainer.method, trainer.config.method.temperature)
    return model, model.named()


def parity(config: Config, folder: Path | None) -> None:
    """The largest relative difference of losses, gradients and EMA weights over five steps in double precision."""
    trainer = Trainer(plain_of(config))
    trainer.method.double().train()
    model, named = theirs(trainer, folder)
    model.double().train()
    grads: dict[str, Tensor] = {}
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p, name=name: grads.__setitem__(name, p.grad.clone()))
        for name, p in trainer.method.named_parameters()
        if p.requires_grad
    ]
    ours, other = our_step(trainer, Recorder([], NullSink(), log_grads=False)), their_step(model)
    own = dict(trainer.method.named_parameters())
    worst = {"loss": 0.0, "gradients": 0.0, "averaged weights": 0.0}
    for i in range(5):
        views = [view.double() for view in views_for(trainer, i)]
        a, b = ours(views), other(views)
        worst["loss"] = max(worst["loss"], abs(float(a / b) - 1))
        largest = max(float(p.grad.norm()) for p in named.values() if p.grad is not None)
        for name, p in named.items():
            if p.grad is not None:
                worst["gradients"] = max(worst["gradients"], float((grads[name] - p.grad).norm()) / largest)
            if name.startswith("momentum_"):
                worst["averaged weights"] = max(worst["averaged weights"], float((own[name] - p).abs().max()))
    for hook in hooks:
        hook.remove()
    print("  five steps in double precision, largest difference:", ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))


def compare(config: Config, rounds: int, folder: Path | None) -> float:
    print(f"{config.model.arch}, {config.model.img_size} pixels, batch {config.train.batch_size}")
    parity(config, folder)
    quiet, recording = Trainer(config), Trainer(config)
    views = views_for(quiet, 0)
    on_cpu = quiet.device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    model, _ = theirs(Trainer(plain_of(config)), folder)
    steps = 10 if config.model.arch == "vit_nano" else 2
    label = "official" if folder is not None else "reference"
    with tempfile.TemporaryDirectory() as place, ExitStack() as close:
        rows = [LayerRow(i, x.name, x.depth, x.num_params, x.trainable) for i, x in enumerate(recording.layers())]
        writer = RunWriter.create(Path(place) / "run", config={}, meta={}, layers=rows)
        close.callback(writer.close)
        for module in (model, quiet.method, recording.method):
            module.train()
        contestants = {
            label: their_step(model),
            "ours": our_step(quiet, Recorder([], NullSink(), log_grads=False)),
            "ours, recording": our_step(recording, Recorder(recording.layers(), writer)),
        }
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for round_number in range(rounds + 1):
            for name, step in contestants.items():
                started = clock()
                for _ in range(steps):
                    step(views)
                if not on_cpu:
                    torch.cuda.synchronize()
                if round_number:  # the first round is for warmup
                    times[name].append((clock() - started) / steps)
    print(f"  {quiet.device}, {torch.get_num_threads()} threads, {'processor' if on_cpu else 'wall'} time")
    for name, found in times.items():
        print(f"  {name:<16}{median(found) * 1000:>9.1f} ms a step")
    ratio = median(o / p for o, p in zip(times["ours, recording"], times[label], strict=True))
    print(f"  ours, recording / {label}: {ratio:.2f} (median over {rounds} rounds)")
    return ratio


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile our encoders")
    parser.add_argument("--official", type=Path, metavar="DIR", help="a checkout of facebookresearch/moco-v3")
    arguments = parser.parse_args()
    with alone() if arguments.official else contextlib.nullcontext():
        found = [
            compare(c, 3 if arguments.quick else 11, arguments.official)
            for c in settings(arguments.device, arguments.compile)
        ]
    if max(found) > 0.9:
        raise SystemExit("our step, recording, takes more than 0.9 times theirs")
