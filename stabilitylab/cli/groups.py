"""Groups of commands, with a hint for a command that does not exist."""

from __future__ import annotations

from pathlib import Path

import click


class Group(click.Group):
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            from stabilitylab.registry import hint

            if "auto" in names and Path(args[0]).exists():
                raise click.UsageError(f"unknown command {args[0]!r}; did you mean {ctx.command_path} auto {args[0]}?")
            raise click.UsageError(f"unknown command {args[0]!r}; {hint(args[0], names, n=2)}")
        return super().resolve_command(ctx, args)
