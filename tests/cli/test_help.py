"""Every command has help that names its options, and the README names every command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from stabilitylab.cli import COMMANDS, cli

README = Path(__file__).parents[2] / "README.md"


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda x: " ".join(x) if isinstance(x, tuple) else ""
)
def test_every_command_and_option_is_explained(path: tuple[str, ...], command: click.Command) -> None:
    done = CliRunner().invoke(cli, [*path, "--help"])
    assert done.exit_code == 0
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("help", "version"):
            assert parameter.help or isinstance(parameter.type, click.Choice), f"{' '.join(path)} {parameter.opts}"


def test_the_first_help_page_lists_every_command() -> None:
    page = CliRunner().invoke(cli, ["--help"]).output
    for name in COMMANDS:
        assert f"\n  {name} " in page


@pytest.mark.parametrize("group", [[], ["cause"], ["import"]])
def test_no_summary_of_a_command_is_cut_off(group: list[str]) -> None:
    listed = CliRunner().invoke(cli, [*group, "--help"], terminal_width=80).output.partition("Commands:\n")[2]
    assert listed
    assert "..." not in listed


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_shows_every_command(name: str) -> None:
    assert f"stablab {name}" in README.read_text(encoding="utf-8")
