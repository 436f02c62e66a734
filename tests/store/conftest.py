"""Small runs, written through the public API."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stabilitylab.store.schema import LayerRow
from stabilitylab.store.writer import RunWriter

LAYERS = [LayerRow(0, "patch_embed", 0, 100), LayerRow(1, "blocks.0", 1, 50), LayerRow(2, "norm", 2, 8)]


def add(writer: RunWriter, iterations: range, offset: float = 0.0) -> None:
    """Append whole iterations: three layers, grad_norm = iteration + layer_id / 10 + offset."""
    count = len(iterations)
    iteration = np.repeat(np.asarray(iterations), 3)
    layer_id = np.tile(np.arange(3), count)
    value = iteration + layer_id / 10 + offset
    writer.append("layer_stats", {"iteration": iteration, "layer_id": layer_id, "grad_norm": value})
    writer.append("iterations", {"iteration": list(iterations), "loss": [1.0] * count})


def start(run_dir: Path, **options: object) -> RunWriter:
    return RunWriter.create(run_dir, config={}, meta={}, layers=LAYERS, **options)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run_001"


PREAMBLE = """
import os, signal, sys
from pathlib import Path
from tests.store.conftest import LAYERS, add, start
from stabilitylab.store.writer import RunWriter
run_dir = Path(sys.argv[1])
"""


@pytest.fixture
def in_process(run_dir: Path) -> Callable[[str], subprocess.Popen[str]]:
    """Start Python code as a process of its own, with `run_dir`, `start` and `add` at hand."""

    def begin(code: str) -> subprocess.Popen[str]:
        root = Path(__file__).parents[2]
        return subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), str(run_dir)],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )

    return begin
