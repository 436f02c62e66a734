"""Error and time of the recorder's L2 norm on the CPU by size, compared with torch.dot and torch.linalg.vector_norm.

    python benchmarks/norms.py [--threads N] [--dtype float32] [--largest 2e8]

Run it with ``ATEN_CPU_CAPABILITY=default``, ``avx2`` and unset, to see what depends on the processor. Times are per
tensor and the minimum over interleaved rounds; each call measures tensors with ten million entries in total, at most
100.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stabilitylab.recording.norms import Kinds, l2_norms

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 200_000_000)


KINDS = Kinds()  # reused between calls, as in the recorder


def by_recorder(tensors: Sequence[Tensor]) -> Tensor:
    return l2_norms(tensors, KINDS.of(tensors)[0])[0]


def by_dot(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.dot(t, t) for t in tensors]).sqrt()


def by_vector_norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(t) for t in tensors])


WAYS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "recorder": by_recorder,
    "torch.dot": by_dot,
    "vector_norm": by_vector_norm,
}


def exact(tensor: Tensor) -> float:
    """The norm in double precision, computed in parts."""
    return sum(float(part.double().square().sum()) for part in tensor.split(1 << 22)) ** 0.5


def error(way: Callable[[Sequence[Tensor]], Tensor], tensor: Tensor) -> float:
    return abs(float(way([tensor])[0]) / exact(tensor) - 1)


def seconds(tensors: list[Tensor], rounds: int) -> dict[str, float]:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(WAYS, float("inf"))
    for _ in range(rounds):
        for name, way in WAYS.items():
            start = clock()
            way(tensors)
            best[name] = min(best[name], (clock() - start) / len(tensors))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument("--largest", type=float, default=2e8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    print(f"{options.dtype}, {options.threads} threads, torch's kernels: {torch.backends.cpu.get_cpu_capability()}")
    print(
        f"{'entries':>11}  {'norm':11} {'error, constant':>15} {'error, random':>14} {'microseconds':>13} {'x dot':>6}"
    )
    for size in (size for size in SIZES if size <= options.largest):
        constant = torch.full((size,), 0.1).to(dtype)
        errors = {name: error(way, constant) for name, way in WAYS.items()}
        del constant
        tensors = [torch.randn(size).to(dtype) for _ in range(max(1, min(100, 10_000_000 // size)))]
        taken = seconds(tensors, rounds=max(5, min(100, 20_000_000 // size)))
        for name, way in WAYS.items():
            print(
                f"{size:>11,}  {name:11} {errors[name]:>15.1e} {error(way, tensors[0]):>14.1e} "
                f"{1e6 * taken[name]:>13.1f} {taken[name] / taken['torch.dot']:>6.2f}"
            )


if __name__ == "__main__":
    main()
