"""The code in docs/ runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import click
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


@pytest.mark.parametrize("page", ["README.md", "docs/gallery.md"])
def test_every_picture_is_there_and_small(page: str) -> None:
    file = DOCS.parent / page
    pictures = re.findall(
        r"!\[[^\]]+\]\(([^)]+)\)|<img src=\"([^\"]+)\" width=\"\d+\" alt=\"[^\"]+\">", file.read_text()
    )
    assert len(pictures) >= 2
    for markdown, tag in pictures:
        picture = file.parent / (markdown or tag)
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size <= 150_000
    if page == "docs/gallery.md":
        shown = {Path(markdown).name for markdown, _ in pictures}
        assert shown == {path.name for path in (DOCS / "gallery").iterdir()}


def test_the_commands_of_the_gallery_exist() -> None:
    for line in re.findall(r"^`stablab (.+?)`", (DOCS / "gallery.md").read_text(encoding="utf-8"), re.MULTILINE):
        name, *arguments = line.split()
        options = {
            option for parameter in cli.get_command(click.Context(cli), name).params for option in parameter.opts
        }
        assert {argument for argument in arguments if argument.startswith("-")} <= options
