"""The report of a profile: `profile.json` for programs, `profile.html` for people, the plots as PNG for slides."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from edgekit.errors import MachineError, UnavailableError, UsageError
from edgekit.plots import PLOTS, draw
from edgekit.profile_page import profile_page
from edgekit.state import write_durably

__all__ = ["check_folder", "write_profile"]

_FILES = ("profile.json", "profile.html", *PLOTS)


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """See to it that a report can be written, before anything is measured.

    Args:
        folder: Where; it need not exist.
        overwrite: Whether an earlier report there may go.

    Raises:
        UnavailableError: What draws the plots is not installed.
        UsageError: There is a report, or a file, already.
        MachineError: The folder cannot be made.
    """
    if find_spec("matplotlib") is None:
        raise UnavailableError(
            "--report draws its PNG files with matplotlib, which is not installed",
            hint="Run: pip install 'edgekit-deploy[profile]'.",
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", expected="a folder for the report")
    there = [name for name in _FILES if (folder / name).exists()]
    if there and not overwrite:
        raise UsageError(f"{folder} holds {there[0]} already", hint="Give another folder, or --overwrite.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot make {folder}: {error.strerror}") from error


def write_profile(folder: Path, data: Mapping[str, Any]) -> None:
    """Write the files, replacing those of an earlier report.

    Args:
        folder: As `check_folder` left it.
        data: What `edgekit profile --json` prints.
    """
    made = {
        "profile.json": msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n",
        "profile.html": profile_page(data).encode(),
        **draw(data),
    }
    try:
        for name in _FILES:
            if name in made:
                write_durably(folder / name, made[name])
            else:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"cannot write the report into {folder}: {error.strerror}") from error
