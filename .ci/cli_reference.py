"""Write docs/cli.md from what the commands say about themselves.

    python .ci/cli_reference.py [--check]

With --check it only compares, and fails where the page has grown old; a test does that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click

from edgekit.cli import COMMANDS, cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
WIDTH = 100
INTRODUCTION = """\
# Command line

Written by `make docs` from each command's own `--help`; do not edit.

Every command ends with one of these codes:

| code | meaning |
|---|---|
| 0 | done |
| 1 | the machine failed us: disk full, permission denied |
| 2 | usage, unknown target, bad data |
| 3 | conversion failed, or there is no route |
| 4 | refused by the gate or the golden set |
| 5 | runtime, extra or device not available |
| 6 | bundle or model file invalid |
| 7 | network or server |
| 130 | interrupted |
"""


def main() -> None:
    """Write the page, or compare it."""
    if sys.argv[1:] == ["--check"]:
        sys.exit(PAGE.read_text(encoding="utf-8") != reference())
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"wrote {PAGE.name}: {len(COMMANDS)} commands")


def reference() -> str:
    """Return the page: every command and subcommand with its help."""
    sections = [f"## {path}\n\n```\n{text}\n```\n" for path, text in helps()]
    return "\n".join([INTRODUCTION, *sections])


def helps() -> Iterator[tuple[str, str]]:
    """Yield (`edgekit …`, its help) for every command, in the order of the table."""
    yield "edgekit", _help(cli, _context(cli, "edgekit"))
    for name, (where, _) in COMMANDS.items():
        module, _, attribute = where.partition(":")
        yield from _below(getattr(import_module(module), attribute), _context(cli, "edgekit"), name)


def _below(command: click.Command, parent: click.Context, name: str) -> Iterator[tuple[str, str]]:
    context = _context(command, name, parent)
    yield context.command_path, _help(command, context)
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from _below(found, context, child)


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    settings = {"terminal_width": WIDTH, "max_content_width": WIDTH, **command.context_settings}
    return click.Context(command, info_name=name, parent=parent, **settings)


def _help(command: click.Command, context: click.Context) -> str:
    return "\n".join(line.rstrip() for line in command.get_help(context).strip().splitlines())


if __name__ == "__main__":
    main()
