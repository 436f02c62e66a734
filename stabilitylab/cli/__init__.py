"""The command line. Commands are imported when used, so that ``--help`` and analysis do not import torch."""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from importlib import import_module

import click

from stabilitylab import __version__

# command -> module that defines it, under the same name with dashes as underscores
COMMANDS = {
    "train": "train",
    "analyze": "analyze",
    "compare": "compare",
    "report": "report",
    "figure": "figure",
    "watch": "watch",
    "probe": "probe",
    "convert": "convert",
    "runs": "runs",
    "sql": "sql",
    "import": "imports",
    "export": "export",
    "study": "study",
    "branch": "branch",
    "cause": "cause",
    "claims": "claims",
    "demo": "demo",
}


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"stabilitylab.cli.{COMMANDS[name]}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=2) or list(COMMANDS)
            raise click.UsageError(f"unknown command {args[0]!r}; did you mean {' or '.join(near)}?")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="stablab")
def cli() -> None:
    """Find, time and cure the training instability of self-supervised vision transformers.

    \b
    stablab demo                         the whole chain on real digits, in a few minutes
    stablab train --log-grads            train, recording every layer's gradient
    stablab analyze run_001              spikes, first-to-last-layer lag, dips
    stablab compare run_001 run_002 ...  what a mitigation changes, over seeds
    stablab report run_001 run_002 -o report.html
    """


def main() -> None:
    """Run the command line. Invalid input prints one line to standard error and exits with code 2."""
    from stabilitylab.cli.terminal import protect
    from stabilitylab.errors import StabilityLabError

    protect()
    warnings.showwarning = lambda message, *_, **__: click.echo(f"stablab: warning: {message}", err=True)
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        where = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        fail(error.format_message() + where)
    except click.ClickException as error:
        fail(error.format_message())
    except StabilityLabError as error:
        fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted", code=130)
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has closed it. Nothing must be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # an inaccessible file or a full disk, which is not a bug
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}")
    except RecursionError:
        fail("the input is nested too deeply")
    except MemoryError:
        fail("there is not enough memory for this")
    sys.exit(code if isinstance(code, int) else 0)


def fail(message: str, code: int = 2) -> None:
    """Print the error in one line and exit."""
    click.echo("stablab: " + " ".join(message.split()), err=True)
    sys.exit(code)
