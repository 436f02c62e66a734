"""The fuzzers and the kills, a few hundred of each; more by ``python -m tests.hostile --inputs 3000 --kills 300``."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("amounts", [("--inputs", "240", "--kills", "0"), ("--inputs", "0", "--kills", "40")])
def test_no_fault_is_found(amounts: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "tests.hostile", *amounts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
