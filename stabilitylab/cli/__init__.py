"""The command line. Commands are imported when used, so that ``--help`` and analysis do not import torch."""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module

import click

from stabilitylab import __version__
from stabilitylab.cli.groups import Group

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


class LazyGroup(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"stabilitylab.cli.{COMMANDS[name]}").command
        return command


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
        code = cli.main(prog_name="stablab", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # a group without a command
            click.echo(error.format_message(), err=True)
            sys.exit(2)
        message = _usage(error)
        if error.ctx is not None:
            message += f"{' See' if message.endswith('?') else '; see'} {error.ctx.command_path} --help"
        fail(message)
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


def _usage(error: click.UsageError) -> str:
    """The message of a usage error as one clause: lower case, without a full stop."""
    if isinstance(error, click.NoSuchOption):
        near = [name for name in error.possibilities or () if name != "--help"]
        return f"unknown option {error.option_name}" + (f"; did you mean {' or '.join(near)}?" if near else "")
    message = error.format_message().removeprefix("Got ").rstrip(".")
    return message[:1].lower() + message[1:]


def fail(message: str, code: int = 2) -> None:
    """Print the error in one line and exit."""
    click.echo("stablab: " + " ".join(message.split()), err=True)
    sys.exit(code)
