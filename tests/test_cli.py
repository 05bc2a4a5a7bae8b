"""The command line as a whole: what it imports, what it lists, how it ends."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import click
import pytest

from edgekit.cli import COMMANDS

HEAVY = {
    "numpy",
    "msgspec",
    "ai_edge_litert",
    "tflite_runtime",
    "onnxruntime",
    "openvino",
    "tensorflow",
    "rich",
}


def _edgekit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _command(name: str) -> click.Command:
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(import_module(module), attribute)
    assert isinstance(command, click.Command)
    return command


def test_help_imports_neither_numpy_nor_a_runtime() -> None:
    script = (
        "import sys\n"
        "from edgekit.cli import main\n"
        "sys.argv = ['edgekit', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "print(sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    imported = {name.strip(" '") for name in done.stderr.strip("[]\n").split(",")}
    assert "click" in imported
    assert imported & HEAVY == set()
    assert "Commands:" in done.stdout


def test_help_lists_every_command_with_its_line() -> None:
    text = " ".join(_edgekit("--help").stdout.split())
    missing = [name for name, (_, line) in COMMANDS.items() if f"{name} {line}" not in text]
    assert missing == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_line_is_the_first_sentence_of_the_docstring(name: str) -> None:
    command = _command(name)
    assert command.help is not None
    assert (
        command.help.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".") + "." == COMMANDS[name][1]
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    command = _command(name)
    commands = command.commands.values() if isinstance(command, click.Group) else [command]
    silent = [
        f"{one.name} {option.opts[0]}"
        for one in commands
        for option in one.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--version"], 0, "edgekit, version 0.1.0"),
        (["nothing"], 2, "No such command 'nothing'"),
        (["convert"], 2, "Missing"),
        (["convert", "--no-such-option"], 2, "No such option"),
    ],
)
def test_exit_codes_of_usage(arguments: list[str], code: int, said: str) -> None:
    done = _edgekit(*arguments)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
