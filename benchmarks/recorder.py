"""The cost of recording: step time relative to a plain loop, compared with other loggers, and bytes on disk.

    python benchmarks/recorder.py [--quick] [--only NAME] [--device cuda] [--markdown docs/cost.md]

Rounds are interleaved and the median over rounds is shown: processor time on a CPU (one thread), wall time on a GPU.
Other loggers are measured if they are installed (``pip install 'stabilitylab[bench]'``). What wandb does in another
process is not counted. Limits: 2% of a step on a CPU and 1% on a GPU, 8% with six signals; on a GPU a call takes at
most 1.3 times the plain foreach kernels for the same signals plus one copy; 12 bytes on disk per layer, iteration and
pair of norms. The exit code is 1 if a limit is exceeded, except with ``--quick``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import stabilitylab
from stabilitylab.store.location import claim_run
from stabilitylab.store.writer import LayerRow, RunWriter

Log = Callable[[int, Tensor], object]
Start = tuple[str, Callable[[nn.Module, Path], contextlib.AbstractContextManager[Log]]]


class Wide(nn.Module):
    """A model with 1,000 parameter tensors of 128 x 128 and 128 entries."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(128, 128) for _ in range(500)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + 0.01 * block(x).tanh()
        return x


def vit() -> nn.Module:
    """ViT-Tiny on images of 64 pixels."""
    return VisionTransformer(img_size=64, patch_size=16, num_classes=10, embed_dim=192, depth=12, num_heads=3)


class Language(nn.Module):
    """GPT-2 with 12 blocks of width 256, on 64 tokens."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(n_embd=256, n_layer=12, n_head=4, vocab_size=1000, n_positions=64)
        self.gpt = GPT2LMHeadModel(config)

    def forward(self, ids: Tensor) -> Tensor:
        return self.gpt(input_ids=ids).logits  # type: ignore[no-any-return]


SIX = ("grad_norm", "grad_max", "weight_norm", "nonfinite", "adam_rms", "update_ratio")


@contextlib.contextmanager
def bare(model: nn.Module, folder: Path) -> Iterator[Log]:
    yield lambda iteration, loss: None


@contextlib.contextmanager
def ours(model: nn.Module, folder: Path) -> Iterator[Log]:
    # The default flushes every 5 seconds. Here other loops run in between, so the interval is five times as long.
    with stabilitylab.record(model, run="ours", runs_dir=folder, flush_seconds=30) as rec:
        yield lambda iteration, loss: rec.step(loss=loss)


@contextlib.contextmanager
def six(model: nn.Module, folder: Path) -> Iterator[Log]:
    optimizer = model.__dict__["optimizer"]
    with stabilitylab.record(
        model, optimizer, run="six", runs_dir=folder, signals=SIX, measure="step", flush_seconds=30
    ) as rec:
        yield lambda iteration, loss: rec.step(loss=loss)


@contextlib.contextmanager
def foreach(model: nn.Module, folder: Path) -> Iterator[Log]:
    """The plain foreach kernels for the same signals, plus one copy."""
    parameters = list(model.parameters())

    def log(iteration: int, loss: Tensor) -> None:
        with torch.no_grad():
            grads = [p.grad for p in parameters if p.grad is not None]
            rows = [torch._foreach_norm(grads, 2), torch._foreach_norm(grads, float("inf"))]
            torch.stack([torch.stack(row) for row in rows]).cpu()

    yield log


@contextlib.contextmanager
def tensorboard(model: nn.Module, folder: Path) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def log(iteration: int, loss: Tensor) -> None:
            for name, p in model.named_parameters():
                if p.grad is not None:
                    writer.add_scalar(f"grad_norm/{name}", p.grad.norm(), iteration)
                    writer.add_scalar(f"grad_max/{name}", p.grad.abs().max(), iteration)

        yield log


@contextlib.contextmanager
def wandb_watch(model: nn.Module, folder: Path) -> Iterator[Log]:
    import wandb

    run = wandb.init(mode="offline", dir=str(folder), settings=wandb.Settings(silent=True))
    wandb.watch(model, log="gradients", log_freq=1)
    yield lambda iteration, loss: wandb.log({"loss": loss.item()})
    run.finish()


@contextlib.contextmanager
def trainscope(model: nn.Module, folder: Path) -> Iterator[Log]:
    from trainscope import TrainScope, TrainScopeConfig

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    scope = TrainScope(model, optimizer, config=TrainScopeConfig(run_dir=str(folder / "trainscope"))).attach()
    yield lambda iteration, loss: scope.step(loss.item(), batch_index=iteration)
    scope.detach()


PEERS: dict[str, Start] = {
    "tensorboard": ("TensorBoard scalars", tensorboard),
    "wandb": ("wandb.watch (offline)", wandb_watch),
    "trainscope": ("trainscope", trainscope),
}
SLOW = ("wandb.watch (offline)", "trainscope")
"""Seconds a step: one step in each of two rounds says enough."""


def contestants() -> dict[str, Callable[[nn.Module, Path], contextlib.AbstractContextManager[Log]]]:
    found = {
        "bare loop": bare,
        "stabilitylab": ours,
        "stabilitylab, six signals": six,
        "foreach kernels + copy": foreach,
    }
    return found | {name: start for module, (name, start) in PEERS.items() if importlib.util.find_spec(module)}


class Loop:
    """A training loop of its own with one way to log."""

    def __init__(self, model: nn.Module, x: Tensor, start: Any, folder: Path, close: ExitStack) -> None:
        self.model, self.x = copy.deepcopy(model).to(x.device), x
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.model.__dict__["optimizer"] = self.optimizer
        self.log: Log = close.enter_context(start(self.model, folder))
        self.iteration = 0
        self._clock = time.perf_counter if x.is_cuda else time.process_time

    def run(self, steps: int) -> tuple[float, float]:
        """Seconds per step, and of those in the call that logs."""
        inside = 0.0
        started = self._clock()
        for _ in range(steps):
            loss = self.model(self.x).square().mean()
            loss.backward()
            if self.x.is_cuda:  # or the call would wait for the backward pass
                torch.cuda.synchronize()
            before = self._clock()
            self.log(self.iteration, loss.detach())
            inside += self._clock() - before
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.iteration += 1
        if self.x.is_cuda:
            torch.cuda.synchronize()
        return (self._clock() - started) / steps, inside / steps


WARM = 16
"""Steps before the first that counts: ``measure="auto"`` measures twice in its first steps."""


def compare(title: str, model: nn.Module, x: Tensor, rounds: int, steps: int) -> dict[str, Any]:
    """Measure one model: the bare step in ms, the ratio of each contestant, and our call against the bare kernels."""
    ratios: dict[str, list[float]] = {}
    own: dict[str, list[float]] = {}
    bare_steps: list[float] = []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        loops = {name: Loop(model, x, start, folder, stack) for name, start in contestants().items()}
        fast = [name for name in loops if name not in SLOW]
        loops["stabilitylab"].run(WARM)
        # The slow ones come last: the processes and caches that they leave behind slow down whatever follows.
        for turn, names in [(n, fast) for n in range(rounds + 1)] + [(n, ["bare loop", *SLOW]) for n in range(3)]:
            # The order alternates, so that no contestant always follows the same one.
            for name in names if turn % 2 else ["bare loop", *names[:0:-1]]:
                if name not in loops:
                    continue
                step, inside = loops[name].run(1 if name in SLOW else steps)
                if name == "bare loop":
                    bare_steps.append(step)
                if turn:  # the first warms up
                    ratios.setdefault(name, []).append(step / bare_steps[-1])
                    own.setdefault(name, []).append(inside)
    tensors, size = sum(1 for _ in model.parameters()), sum(p.numel() for p in model.parameters()) / 1e6
    bare = 1e3 * median(bare_steps)
    print(f"{title}: {tensors} parameter tensors, {size:.1f}M parameters, {x.device}, a bare step {bare:.0f} ms")
    print(f"  {'':<26}{'step time':>10}{'in the call':>14}{'of a bare step':>16}")
    for name, values in ratios.items():
        call = 1e3 * median(own[name])
        print(f"  {name:<26}{median(values):>9.3f}x{call:>11.2f} ms{call / bare:>15.1%}", flush=True)
    calls = median(a / b for a, b in zip(own["stabilitylab"], own["foreach kernels + copy"], strict=True))
    print(f"  our call / foreach kernels + copy: {calls:.2f}")
    return {"title": title, "bare": bare, "step": {n: median(v) for n, v in ratios.items()}, "call": calls}


def markdown(page: Path, found: list[dict[str, Any]]) -> None:
    """Write the table into ``page``, after its marker."""
    names = [name for name in found[0]["step"] if name != "bare loop"]
    lines = ["| model | bare step | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for one in found:
        cells = [f"{one['step'][name]:.3f}" for name in names]
        lines.append(f"| {one['title']} | {one['bare']:.0f} ms | " + " | ".join(cells) + " |")
    before = page.read_text(encoding="utf-8").split("<!-- table -->")[0]
    page.write_text(f"{before}<!-- table -->\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


def disk(layers: int = 152, iterations: int = 5000) -> dict[str, float]:
    """Bytes per row of two norms in the finished file. The norms are random, so they cannot be compressed."""
    rng = np.random.default_rng(0)
    ids = np.arange(layers)
    with tempfile.TemporaryDirectory() as temporary:
        run_dir = claim_run(Path(temporary), "noise")
        rows = [LayerRow(i, f"layer_{i}", i, 1) for i in range(layers)]
        with RunWriter.create(run_dir, config={}, meta={}, layers=rows) as writer:
            for start in range(0, iterations, 200):
                norms = np.exp(rng.normal(size=(2, 200 * layers))).astype(np.float32)
                at = np.repeat(np.arange(start, start + 200), layers)
                columns = {"iteration": at, "layer_id": np.tile(ids, 200), "grad_norm": norms[0], "grad_max": norms[1]}
                writer.append("layer_stats", columns)
                writer.publish(wait=True)
        size = (run_dir / "run.duckdb").stat().st_size / (layers * iterations)
    print(f"disk: {size:.1f} bytes a layer, iteration and pair of norms ({layers} layers, {iterations:,} iterations)")
    return {"bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--markdown", type=Path, help="write the table into this page")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    cases: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
        "ViT-Tiny": (vit, torch.randn(32 if device.type == "cpu" else 512, 3, 64, 64)),
        "GPT-2, 12 blocks of 256, 4 x 64 tokens": (Language, torch.randint(0, 1000, (4, 64))),
        "1,000 small tensors": (Wide, torch.randn(1024, 128)),
        "GPT-2, 12 blocks of 256, 16 x 64 tokens": (Language, torch.randint(0, 1000, (16, 64))),
    }
    rounds = {title: 4 if arguments.quick or "16 x" in title else 15 for title in cases}
    found = [
        compare(title, make(), x.to(device), rounds[title], 2)
        for title, (make, x) in cases.items()
        if arguments.only in title
    ]
    if arguments.markdown:
        markdown(arguments.markdown, found)
    limits = {"stabilitylab": 1.02 if device.type == "cpu" else 1.01, "stabilitylab, six signals": 1.08}
    above = []
    for one in found[:2] if not arguments.only else found:
        above += [f"{one['title']}, {n}: {one['step'][n]:.3f}" for n, limit in limits.items() if one["step"][n] > limit]
        if device.type == "cuda" and one["call"] > 1.3:
            above.append(f"{one['title']}: a call {one['call']:.2f} times the plain kernels")
    if not arguments.only and (size := disk()["bytes"]) > 12:
        above.append(f"{size:.1f} bytes a row")
    if above and not arguments.quick:
        raise SystemExit("above the limits: " + "; ".join(above))


if __name__ == "__main__":
    main()
