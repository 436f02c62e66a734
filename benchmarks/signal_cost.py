"""The cost of each signal: processor time of a training step that records it, relative to recording the two norms.

    python benchmarks/signal_cost.py [--rounds N]

A ViT with 6 blocks of width 128 on 65 tokens, batch 16, AdamW, one thread. The loops alternate step by step and the
median over rounds counts, so that other load affects all of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from statistics import median

import torch
from timm.models.vision_transformer import VisionTransformer

import stabilitylab

NORMS = ("grad_norm", "grad_max")
LOOPS: dict[str, tuple[str, ...]] = {
    "the two norms": NORMS,
    **{
        f"and {name}": (*NORMS, name)
        for name in ("attention_max", "attention_entropy", "grad_cosine", "activation_max")
    },
}


class Loop:
    def __init__(self, signals: tuple[str, ...], folder: str, name: str, stack: ExitStack) -> None:
        torch.manual_seed(0)
        self.model = VisionTransformer(img_size=32, patch_size=4, num_classes=10, embed_dim=128, depth=6, num_heads=4)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        recorder = stabilitylab.record(
            self.model, self.optimizer, run=name, runs_dir=folder, signals=signals, flush_seconds=60, measure="step"
        )
        self.recorder = stack.enter_context(recorder)
        self.seconds: list[float] = []

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        started = time.process_time()
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.recorder.step(loss=loss)
        self.optimizer.step()
        self.seconds.append(time.process_time() - started)


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    images, labels = torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        loops = {name: Loop(signals, folder, f"loop{i}", stack) for i, (name, signals) in enumerate(LOOPS.items())}
        for _ in range(rounds):
            for loop in loops.values():
                loop.step(images, labels)
        base = loops["the two norms"].seconds[3:]
        print(f"{'recorded':<26}{'ms a step':>10}{'of the two norms':>18}")
        for name, loop in loops.items():
            ratio = median(own / norms for own, norms in zip(loop.seconds[3:], base, strict=True))
            print(f"{name:<26}{1000 * median(loop.seconds[3:]):>10.1f}{ratio:>18.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    main(parser.parse_args().rounds)
