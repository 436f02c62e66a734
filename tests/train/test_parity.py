"""Several processes do what one does: losses, gradients and buffers of every method, over two steps, the kNN and the
linear probe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return steps(tmp_path_factory.mktemp("alone"), 1)


def launch(module: str, processes: int, *arguments: str) -> None:
    """Run a module of the tests in one process, or in several that meet over gloo."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, "-m", module, *arguments], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def steps(folder: Path, processes: int) -> dict[str, dict[str, Any]]:
    launch("tests.train.parity", processes, str(folder / "out.pt"))
    found: dict[str, dict[str, Any]] = torch.load(folder / "out.pt")
    return found


@pytest.mark.parametrize("processes", [2, 4])
def test_losses_gradients_and_buffers_are_those_of_one_process(
    processes: int, tmp_path: Path, alone: dict[str, dict[str, Any]]
) -> None:
    shared = steps(tmp_path, processes)
    assert shared.keys() == alone.keys()
    assert len(alone) == 12
    for case, one in alone.items():
        several = shared[case]
        assert several["losses"] == pytest.approx(one["losses"], rel=1e-9), case
        assert several["grads"].keys() == one["grads"].keys()
        largest = max((g.abs().max() for g in one["grads"].values()), default=0.0)
        for part, tolerance in (("grads", 1e-9 * largest), ("buffers", 1e-9)):
            for name, value in one[part].items():
                other = several[part][name]
                # A key's bias has no true gradient: the tolerance is relative to the largest gradient of all.
                torch.testing.assert_close(other, value, rtol=1e-6, atol=float(tolerance), msg=f"{case} {name}")


def test_resumed_by_four_two_and_one_processes_is_the_straight_run(tmp_path: Path) -> None:
    def stages(folder: Path, *parts: tuple[int, int, int]) -> list[float]:
        folder.mkdir()
        losses: list[float] = []
        for processes, start, stop in parts:
            launch("tests.train.stage", processes, str(start), str(stop), str(folder))
            losses += json.loads((folder / f"losses-{start}.json").read_text())
        return losses

    changing = stages(tmp_path / "changing", (4, 0, 4), (2, 4, 8), (1, 8, 12))
    straight = stages(tmp_path / "straight", (1, 0, 12))
    assert len(straight) == 12
    assert straight[-1] < straight[2]
    assert changing == pytest.approx(straight, rel=1e-5)
