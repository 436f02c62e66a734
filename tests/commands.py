"""Run ``stablab`` inside this process: the same exit code and output as a separate process, without its start, which
takes several seconds because of torch."""

from __future__ import annotations

import io
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import pytest

from stabilitylab.cli import main


def stablab_here(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``stablab ARGS`` in the folder ``cwd`` and without STABLAB_RUNS."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    code: object = 0
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("default")
        patch.chdir(cwd)
        patch.delenv("STABLAB_RUNS", raising=False)
        patch.setattr(sys, "argv", ["stablab", *args])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            streams[1].write(traceback.format_exc())
            code = 1
    assert isinstance(code, int)
    out, err = (stream.detach().getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(["stablab", *args], code, out, err)
