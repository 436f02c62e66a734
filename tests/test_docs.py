"""The code in docs/ runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from stabilitylab.cli import cli

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.filterwarnings("ignore")
def test_attach_it_to_your_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STABLAB_RUNS", raising=False)
    text = (DOCS / "attach.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "attach.md", "exec"), {"__name__": "__docs__"})
    commands = re.findall(r"^    stablab (analyze .*|report .*)$", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        done = CliRunner().invoke(cli, command.split())
        assert done.exit_code == 0, done.output
    assert (tmp_path / "report.html").exists()
