"""The command line as a whole: what it imports, what it lists, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from edgekit.cli import COMMANDS
from edgekit.cli.output import print_json

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


def _edgekit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgekit", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


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


def test_what_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    """Names that are too long, links that go in circles, pipes, files in place of folders."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.edgekit")
    for arguments, code, said in (
        (["inspect", "x" * 300], 1, "File name too long"),
        (["inspect", str(tmp_path / "loop")], 2, "no bundle at"),
        (["inspect", str(tmp_path / "pipe.edgekit")], 2, "neither a folder nor a file"),
        (["inspect", str(tmp_path / "file" / "x")], 2, "no bundle at"),
    ):
        done = _edgekit(*arguments)
        assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (code, True, False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_encoding_that_lacks_a_sign_ends_no_command(tmp_path: Path, encoding: str) -> None:
    # a sign that Latin-1 lacks, and a byte that is no UTF-8
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xe2\x89\xa4\xff")
    done = _edgekit("inspect", name, PYTHONIOENCODING=encoding)
    assert (done.returncode, "no bundle at" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


def test_json_takes_a_path_that_is_not_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"path": os.fsdecode(b"/tmp/\xff"), "n": 1}
    print_json(data)
    assert json.loads(capsys.readouterr().out) == data


def test_without_a_home_folder_the_variable_to_set_is_named(tmp_path: Path) -> None:
    script = (
        "import os, pwd, sys; os.environ.pop('HOME', None)\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody; sys.argv[1:] = ['agent', '--sync', 'http://localhost:1', '--once']\n"
        "from edgekit.cli import main; main()"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("STATE_DIRECTORY", "XDG_STATE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 2
    assert "no home folder. Set $XDG_STATE_HOME" in done.stderr
