"""Images a second of our training step, recording every layer, against a plain step that logs the same norms.

    python benchmarks/train.py [--quick] [--device cuda]

The plain step follows the paper's Algorithm 1 line by line: each view through each encoder on its own, EMA and
norms tensor by tensor, `.item()` on each norm. Both train the same model on the same views; rounds are
interleaved. Ours must be faster.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from stabilitylab.config import Config, resolve
from stabilitylab.recording.recorder import Recorder
from stabilitylab.store.writer import LayerRow, RunWriter
from stabilitylab.train.trainer import Trainer


def plain_step(trainer: Trainer, log: list[float]) -> Callable[[list[Tensor]], None]:
    m = copy.deepcopy(trainer.method)
    trained = [p for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.1)
    tau = trainer.config.method.temperature

    def contrast(q: Tensor, k: Tensor) -> Tensor:
        logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / tau
        return 2 * tau * F.cross_entropy(logits, torch.arange(len(q), device=q.device))

    def step(views: list[Tensor]) -> None:
        x1, x2 = views
        q1, q2 = m.predictor(m.projector(m.base_encoder(x1))), m.predictor(m.projector(m.base_encoder(x2)))
        with torch.no_grad():
            for online, averaged in ((m.base_encoder, m.momentum_encoder), (m.projector, m.momentum_projector)):
                for p, k in zip(online.parameters(), averaged.parameters(), strict=True):
                    k.mul_(0.99).add_(p, alpha=0.01)
            k1, k2 = m.momentum_projector(m.momentum_encoder(x1)), m.momentum_projector(m.momentum_encoder(x2))
        loss = contrast(q1, k2) + contrast(q2, k1)
        optimizer.zero_grad()
        loss.backward()
        log.append(loss.item())
        for p in trained:
            if p.grad is not None:
                log.append(p.grad.norm().item())
                log.append(p.grad.abs().max().item())
                log.append(p.detach().norm().item())
        optimizer.step()

    return step


def our_step(trainer: Trainer, folder: Path, close: ExitStack) -> Callable[[list[Tensor]], None]:
    rows = [LayerRow(i, x.name, x.depth, x.num_params, x.trainable) for i, x in enumerate(trainer.layers())]
    writer = RunWriter.create(folder / "run", config={}, meta={}, layers=rows)
    close.callback(writer.close)
    recorder = Recorder(trainer.layers(), writer)
    done = 0

    def step(views: list[Tensor]) -> None:
        nonlocal done
        trainer.step(recorder, done, views)
        recorder.flush_if_due()
        done += 1

    return step


def settings(device: str) -> list[Config]:
    """The default recipe's model, and a larger one."""
    large = ("vit_small", 224, 16, 128, 4096) if device == "cuda" else ("vit_tiny", 32, 4, 32, 512)
    found = []
    for arch, size, patch, batch, hidden in (("vit_nano", 16, 4, 128, 256), large):
        values = {
            "model": {"arch": arch, "img_size": size, "patch_size": patch},
            "method": {"hidden_dim": hidden, "out_dim": hidden // 4},
            "train": {"device": device, "iterations": 100_000, "batch_size": batch},
            "record": {"granularity": "param"},
        }
        found.append(resolve(values))
    return found


def compare(config: Config, rounds: int) -> float:
    trainer = Trainer(config)
    trainer.method.train()
    size, batch = config.model.img_size, config.train.batch_size
    views = list(torch.randn(2, batch, trainer.data.channels, size, size, device=trainer.device))
    steps = 10 if config.model.arch == "vit_nano" else 2
    with tempfile.TemporaryDirectory() as folder, ExitStack() as close:
        contestants = {"plain": plain_step(trainer, []), "ours": our_step(trainer, Path(folder), close)}
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for round_number in range(rounds + 1):
            for name, step in contestants.items():
                started = time.perf_counter()
                for _ in range(steps):
                    step(views)
                if trainer.device.type == "cuda":
                    torch.cuda.synchronize()
                if round_number:  # the first round warms up
                    times[name].append((time.perf_counter() - started) / steps)
    print(f"{config.model.arch}, {size} pixels, batch {batch}, {trainer.device}, {torch.get_num_threads()} threads")
    for name, found in times.items():
        print(f"  {name:<6}{batch / median(found):>9.1f} images/s")
    ratio = median(p / o for p, o in zip(times["plain"], times["ours"], strict=True))
    print(f"  ours / plain: {ratio:.2f} (median over {rounds} rounds)")
    return ratio


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    ratios = [compare(config, 3 if arguments.quick else 11) for config in settings(arguments.device)]
    if min(ratios) <= 1:
        raise SystemExit("our step is not faster than the plain one")
