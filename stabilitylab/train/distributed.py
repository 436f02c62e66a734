"""Distributed training: one process per device, each with its slice of every batch.

Each process runs its own rows through the backbone and the heads. BatchNorms are synchronised, and losses gather the
rows they need from other processes (`stabilitylab.models.collectives`), so the result equals single-process training.
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
    """The rank of this process and the number of processes. Single-process training has size 1."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this process records and saves."""
        return self.rank == 0

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient with its mean over processes, which keeps the parameters of all processes equal."""
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
    """The world described by the environment variables of ``torchrun`` or ``srun``."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return World(int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", 0)))
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # set by srun, not by sbatch
        rank, local = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
        return World(rank, int(environment["SLURM_STEP_NUM_TASKS"]), local)
    return World()


def join(world: World, device: torch.device) -> None:
    """Initialise the process group. Under Slurm, the master is the first node of the step and the port is derived from
    the job and step ids. Raises ConfigError if there is no master address."""
    if world.size == 1 or dist.is_initialized():
        return
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_STEP_NODELIST")
        if nodes is None:
            raise ConfigError("several processes, but MASTER_ADDR is not set; start them with torchrun or srun")
        os.environ["MASTER_ADDR"] = first_node(nodes)
        step = int(os.environ.get("SLURM_JOB_ID", 0)) + 7919 * int(os.environ.get("SLURM_STEP_ID", 0))
        os.environ.setdefault("MASTER_PORT", str(20_000 + step % 20_000))  # steps of one job need different ports
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=world.rank, world_size=world.size)


def first_node(nodes: str) -> str:
    """The first node of a Slurm node list: ``gpu[07-09,12],cpu1`` -> ``gpu07``."""
    first = re.match(r"[^,\[]+(?:\[(\d+)[^\]]*\])?", nodes)
    assert first is not None, nodes
    return first[0].split("[")[0] + (first[1] or "")


def leave() -> None:
    """Destroy the process group created by `join`."""
    if dist.is_initialized():
        dist.destroy_process_group()
