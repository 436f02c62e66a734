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
        trainer._step(recorder, done, views)
        recorder.flush_if_due()
        done += 1

    return step


def settings(quick: bool, device: str) -> Config:
    small = {"arch": "vit_tiny", "img_size": 32, "patch_size": 4} if quick or device == "cpu" else {}
    model = small or {"arch": "vit_small", "img_size": 224, "patch_size": 16}
    batch = 32 if device == "cpu" else 128
    train = {"device": device, "iterations": 10_000, "batch_size": batch}
    method = {"hidden_dim": 512 if device == "cpu" else 4096, "out_dim": 128 if device == "cpu" else 256}
    return resolve({"model": model, "method": method, "train": train, "record": {"granularity": "param"}})


def main(quick: bool, device: str) -> None:
    config = settings(quick, device)
    trainer = Trainer(config)
    trainer.method.train()
    size, batch = config.model.img_size, config.train.batch_size
    views = list(torch.randn(2, batch, trainer.data.channels, size, size, device=trainer.device))
    rounds, steps = (3, 2) if quick else (9, 3)
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
        print(f"{name:<6}{batch / median(found):>9.1f} images/s")
    ratio = median(p / o for p, o in zip(times["plain"], times["ours"], strict=True))
    print(f"ours / plain: {ratio:.2f} (median over {rounds} rounds)")
    if ratio <= 1:
        raise SystemExit("our step is not faster than the plain one")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    main(arguments.quick, arguments.device)
