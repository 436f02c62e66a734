"""Several processes do what one does: losses, gradients and buffers of every method, over two steps, and the kNN."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    return steps(tmp_path_factory.mktemp("alone"), 1)


def steps(folder: Path, processes: int) -> dict[str, dict[str, object]]:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*launch, "-m", "tests.train.parity", str(folder / "out.pt")],
        env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, object]] = torch.load(folder / "out.pt")
    return found


@pytest.mark.parametrize("processes", [2, 4])
def test_losses_gradients_and_buffers_are_those_of_one_process(
    processes: int, tmp_path: Path, alone: dict[str, dict[str, object]]
) -> None:
    shared = steps(tmp_path, processes)
    assert shared.keys() == alone.keys()
    assert len(alone) == 11
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
