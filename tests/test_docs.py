"""The code in docs/ runs exactly as printed, and its pictures exist.

A page's ```python blocks share one namespace, the lines `$ stablab ...` of its ```console blocks run through the
command line, its ```toml blocks are parsed: all in order, in one empty folder. A page with
``test: slow`` at its top trains.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from stabilitylab.cli import cli
from tests.commands import stablab_here

DOCS = Path(__file__).parents[1] / "docs"
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RUN = ("python", "console", "toml")


def pages() -> list[object]:
    found = []
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if any(kind in RUN for kind, _ in FENCE.findall(text)):
            slow = text.startswith("---\ntest: slow\n---\n")
            found.append(pytest.param(path.name, marks=[pytest.mark.slow] if slow else []))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", pages())
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STABLAB_RUNS", raising=False)
    namespace = {"__name__": "__docs__"}
    for kind, block in FENCE.findall((DOCS / page).read_text(encoding="utf-8")):
        if kind == "python":
            exec(compile(block, page, "exec"), namespace)
        elif kind == "toml":
            tomllib.loads(block)
        elif kind == "console":
            commands = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
            assert commands
            for command in commands:
                name, *arguments = shlex.split(command)
                assert name == "stablab"
                done = stablab_here(*arguments, cwd=tmp_path)
                assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_commands_stand_in_blocks_that_run() -> None:
    """An indented command would not be tested."""
    for path in DOCS.glob("*.md"):
        assert not re.findall(r"^    stablab .*$", path.read_text(encoding="utf-8"), re.MULTILINE), path


@pytest.mark.parametrize("page", ["README.md", "docs/gallery.md", "docs/analyse.md"])
def test_every_picture_is_there_and_small(page: str) -> None:
    file = DOCS.parent / page
    pictures = re.findall(
        r"!\[[^\]]+\]\(([^)]+)\)|<img src=\"([^\"]+)\" width=\"\d+\" alt=\"[^\"]+\">", file.read_text()
    )
    assert len(pictures) >= 2
    for markdown, tag in pictures:
        picture = file.parent / (markdown or tag)
        assert picture.read_bytes().startswith((b"\x89PNG", b"<?xml"))
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


def test_every_page_is_in_the_navigation() -> None:
    text = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert {path.name for path in DOCS.glob("*.md")} == set(re.findall(r": (\w+\.md)$", text, re.MULTILINE))
