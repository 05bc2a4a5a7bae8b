"""The command line. Each command parses, calls one library function and prints.

Only click is imported here: a command's module is imported when it runs or prints its own help.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from importlib import import_module

import click

from edgekit import __version__
from edgekit.errors import EdgeKitError

__all__ = ["COMMANDS", "cli", "main"]

#: Command to (where it lives, its line in the help). A test holds the lines against the docstrings.
COMMANDS = {
    "convert": ("edgekit.cli.convert:convert", "Convert a trained model into a bundle for a target."),
    "check": ("edgekit.cli.check:check", "Tell what convert would do, and why; converts nothing."),
    "inspect": ("edgekit.cli.inspect:inspect", "Show what a bundle holds."),
    "verify": ("edgekit.cli.verify:verify", "Check a bundle's hashes and run its golden set."),
    "eval": ("edgekit.cli.eval:evaluate", "Score a bundle on labelled data."),
    "run": ("edgekit.cli.run:run", "Predict on arrays or image files."),
    "profile": ("edgekit.cli.profile:profile", "Measure latency, throughput and memory on this machine."),
    "compare": ("edgekit.cli.compare:compare", "Compare two profiles, with intervals on the ratios."),
    "deploy": ("edgekit.cli.deploy:deploy", "Put a bundle onto a device by ssh, and prove it there."),
    "devices": ("edgekit.cli.devices:devices", "List, show and detect devices."),
    "doctor": ("edgekit.cli.doctor:doctor", "Tell what this machine has and what it lacks."),
    "env": ("edgekit.cli.env:env", "Prepare and remove what emulation needs."),
    "serve": ("edgekit.cli.serve:serve", "Run the inference daemon."),
    "daemon": ("edgekit.cli.daemon:daemon", "Ask a running inference daemon how it is."),
    "agent": ("edgekit.cli.agent:agent", "Send this device's reports to a sync server."),
    "bundle": ("edgekit.cli.bundle:bundle", "Pack, unpack and slice bundles."),
    "sync": ("edgekit.cli.sync:sync", "Run the sync server."),
    "fleet": ("edgekit.cli.fleet:fleet", "Operate the fleet of a sync server."),
}


#: What the machine refuses, and no bug: no room, no permission, a limit of the system, a path that leads nowhere.
_MACHINE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE,
    errno.ENFILE, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ESTALE,
)  # fmt: skip


class _LazyGroup(click.Group):
    """A group that imports a command's module only when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgekit")
def cli() -> None:
    """Take a trained model to the device it must run on, prove it there, run it, watch it."""


def _write_anything() -> None:
    """Escape what the terminal's encoding lacks: a name or a sign must not end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _explain_os_error(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}. Free some space and run the command again; nothing was replaced."
    return f"{error.strerror or error}{where}"


def main() -> None:
    """Run the command line and exit with the documented code.

    0 done; 1 the machine failed us; 2 usage, unknown target, bad data; 3 conversion failed or no route;
    4 refused; 5 runtime, extra or device not available; 6 bundle or model file invalid; 7 network or
    server; 130 interrupted. Anything else is a bug and shows its traceback.
    """
    _write_anything()
    try:
        code = cli(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("edgekit: interrupted", err=True)
        sys.exit(130)
    except EdgeKitError as error:
        click.echo(f"edgekit: error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in _MACHINE:
            raise
        click.echo(f"edgekit: error: {_explain_os_error(error)}", err=True)
        sys.exit(1)
