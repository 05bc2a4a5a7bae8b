"""Starting children: every Python child of EdgeKit is started with the words that this module gives."""

from __future__ import annotations

import os
import shlex
import sys

__all__ = ["python_command"]


def python_command(*arguments: str) -> list[str]:
    """Return the command that starts this Python with `arguments`.

    `EDGEKIT_LAUNCHER` goes in front of the interpreter where it is set: an emulator and its options, say,
    since a process under a user-mode emulator cannot start the emulated interpreter by its name.
    """
    return [*shlex.split(os.environ.get("EDGEKIT_LAUNCHER", "")), sys.executable, *arguments]
