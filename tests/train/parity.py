"""Two steps of every method by the processes of a training, in double precision: `test_parity` runs and compares it.

torchrun --nproc-per-node 2 -m tests.train.parity OUT.pt
"""

from __future__ import annotations

import contextlib
import sys

import torch

from stabilitylab.config import resolve
from stabilitylab.data.datasets import load_data
from stabilitylab.methods import METHODS, build_method
from stabilitylab.methods.base import Method
from stabilitylab.train.distributed import describe, join, leave
from stabilitylab.train.evaluate import KnnMonitor
from stabilitylab.train.large_batch import CutStep
from stabilitylab.train.probe import linear_probe

# Every method with a ViT; one without and one with a gathered gradient, and the one with prototypes, with BatchNorm in
# the encoder, which the conv stem brings.
CASES = [(name, "vit_nano", "patch") for name in METHODS]
CASES += [("mocov3", "resnet18", "patch"), ("vicreg", "vit_nano", "conv"), ("swav", "vit_nano", "conv")]
ROWS, STEPS = 8, 2


def knn(rank: int, size: int) -> list[float]:
    """The monitor's answer on digits, with numbers of images that the processes cannot share evenly."""
    config = resolve({"eval": {"knn_bank": 203, "knn_queries": 101}})
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 8))
    monitor = KnnMonitor(config, load_data(config.data), torch.device("cpu"), (rank, size))
    return [monitor(encoder).item(), float(monitor.num_samples)]


class Pixels(torch.nn.Module):
    num_features = 64

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, 2).flatten(1)


def probe(rank: int, size: int) -> list[float]:
    """A linear classifier on the pixels of digits: its accuracy, and that of each learning rate on the images that
    choose it."""
    config = resolve({"train": {"device": "cpu"}})
    data, cpu = load_data(config.data), torch.device("cpu")
    found = linear_probe(config, data, Pixels(), cpu, epochs=3, batch_size=100, processes=(rank, size))
    return [found.value, *(accuracy for _, accuracy in found.sweep)]


def main(out: str) -> None:
    world = describe()
    join(world, torch.device("cpu"))
    found = {}
    for name, arch, stem in CASES:
        size = {"hidden_dim": 12, "out_dim": 6, "num_prototypes": 5, "queue_size": 12, "head_bn": True}
        values = {"model": {"arch": arch, "stem": stem, "pos_embed": "sincos"}, "method": {"name": name, **size}}
        if arch == "vit_nano":
            values["model"] |= {"embed_dim": 16, "depth": 1, "num_heads": 2}
        torch.manual_seed(0)
        method = build_method(resolve(values), channels=1)
        assert isinstance(method, Method)
        method.double()
        step = CutStep(method, world, None, contextlib.nullcontext)
        losses, grads = [], {}
        for iteration in range(STEPS):
            generator = torch.Generator().manual_seed(iteration)
            views = torch.randn(2, ROWS, 1, 16, 16, dtype=torch.float64, generator=generator)
            method.zero_grad()
            losses.append(step(list(views.chunk(world.size, dim=1)[world.rank]), iteration=iteration).item())
            grads = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
            with torch.no_grad():
                for p in method.parameters():
                    if p.grad is not None:
                        p -= 0.05 * p.grad / (1 + p.grad.norm())
            if method.uses_momentum_encoder:
                method.update_momentum_encoder(0.9)
        buffers = {n: b.clone() for n, b in method.named_buffers()}
        found[f"{name} {arch} {stem}"] = {"losses": losses, "grads": grads, "buffers": buffers}
    found["knn"] = {"losses": knn(world.rank, world.size), "grads": {}, "buffers": {}}
    found["probe"] = {"losses": probe(world.rank, world.size), "grads": {}, "buffers": {}}
    if world.main:
        torch.save(found, out)
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
