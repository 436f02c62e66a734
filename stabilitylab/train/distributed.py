"""The processes of one training: one a device, each with its slice of every batch.

Each process takes its own rows through the backbone and the heads; BatchNorms share their moments, and losses gather
what they need of the other rows (`stabilitylab.models.collectives`), so that the whole is what one process would do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stabilitylab.errors import ConfigError


@dataclass(frozen=True)
class World:
    """Which process this is. A training in one process is a world of size 1."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """The process that records, evaluates and saves."""
        return self.rank == 0

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every process's mean gradient. Keeps processes that compute the same from drifting apart."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not grads:
            return
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.size
        torch._foreach_copy_(grads, [part.view_as(g) for part, g in zip(_split(flat, grads), grads, strict=True)])


def _split(flat: Tensor, like: list[Tensor]) -> tuple[Tensor, ...]:
    return flat.split([g.numel() for g in like])


def describe(environment: Mapping[str, str] = os.environ) -> World:
    """The world that ``torchrun`` or ``srun`` set up, from the environment."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return World(int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", 0)))
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # set by srun, not by sbatch
        rank, local = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
        return World(rank, int(environment["SLURM_STEP_NUM_TASKS"]), local)
    return World()


def join(world: World, device: torch.device) -> None:
    """Meet the other processes. Under Slurm at the step's first node, on a port from the job's and step's numbers."""
    if world.size == 1 or dist.is_initialized():
        return
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_STEP_NODELIST")
        if nodes is None:
            raise ConfigError("several processes but no MASTER_ADDR; start them with torchrun or srun")
        os.environ["MASTER_ADDR"] = first_node(nodes)
        step = int(os.environ.get("SLURM_JOB_ID", 0)) + 7919 * int(os.environ.get("SLURM_STEP_ID", 0))
        os.environ.setdefault("MASTER_PORT", str(20_000 + step % 20_000))  # two steps of a job must not meet
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=world.rank, world_size=world.size)


def first_node(nodes: str) -> str:
    """Of Slurm's list of nodes: ``gpu[07-09,12],cpu1`` -> ``gpu07``."""
    first = re.match(r"[^,\[]+(?:\[(\d+)[^\]]*\])?", nodes)
    assert first is not None, nodes
    return first[0].split("[")[0] + (first[1] or "")


def leave() -> None:
    """The end of ``join``."""
    if dist.is_initialized():
        dist.destroy_process_group()
