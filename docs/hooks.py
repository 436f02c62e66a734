"""mkdocs hook: insert the help text of every command into the command-line page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from stabilitylab.cli import cli

MARKER = "<!-- commands -->"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    if page.file.src_uri != "cli.md":
        return markdown
    return markdown.replace(MARKER, "\n\n".join(sections(cli, "stablab")))


def sections(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[str]:
    """Yield the heading and help of a command, then those of its subcommands."""
    context = click.Context(command, info_name=name, parent=parent, max_content_width=90, terminal_width=90)
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            subcommand = command.get_command(context, inner)
            if subcommand is not None and not subcommand.hidden:
                yield from sections(subcommand, inner, context)
