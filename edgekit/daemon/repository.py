"""The repository of installed bundles: `<name>/<version>/` in the state folder.

One version of one name never changes: what is there is whole, and what is not whole has a hidden name.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgekit.atomic import remove, staged
from edgekit.bundle import Bundle, open_bundle
from edgekit.errors import InvalidFileError, UsageError
from edgekit.state import StateFolder

__all__ = ["Installed", "can_install", "install", "installed", "tidy"]

# names with `:` are kept for what is derived from a model, names with `/` or `..` would leave the folder
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class Installed(NamedTuple):
    """One installed bundle.

    Attributes:
        opened: The same, where it has just been checked: a large model is not hashed once more.
    """

    name: str
    version: int
    path: Path
    opened: Bundle | None = None


def can_install(name: str) -> bool:
    """Tell whether a bundle of that name can be installed: it becomes a folder's."""
    return _NAME.fullmatch(name) is not None


def install(path: str | Path, state: StateFolder) -> Installed:
    """Copy a bundle, a folder or an archive, into the repository: whole or not at all, durably.

    A bundle that is there already stays as it is; a damaged copy of it is replaced.

    Raises:
        InvalidFileError: The bundle is damaged, or its name is no folder's.
        UsageError: There is no bundle at `path`, or the version is installed with another content.
        MachineError: The disk is full or may not be written.
    """
    bundle = open_bundle(path)
    name, version = bundle.manifest.name, bundle.manifest.version
    if not can_install(name):
        raise InvalidFileError(
            f"{path} cannot be installed under its name", got=repr(name), expected="letters, digits, . _ -"
        )
    place = Installed(name, version, state.repository / name / str(version))
    damaged = False
    if place.path.exists():
        try:
            there = open_bundle(place.path)
        except InvalidFileError:
            damaged = True
        else:
            if there.digest != bundle.digest:
                raise UsageError(
                    f"version {version} of {name} is installed with another content",
                    got=bundle.digest[:12],
                    expected=there.digest[:12],
                    hint=f"Give the new bundle another version: edgekit convert … --version {version + 1}.",
                )
            if bundle.kept <= there.kept:
                return place._replace(opened=there)
            damaged = True  # a slice lacks files that are offered now
    with staged(place.path, overwrite=damaged, replaceable=Path.is_dir) as temporary:
        shutil.copytree(bundle.root, temporary)
        copied = open_bundle(temporary)  # what was copied is what was checked
    return place._replace(opened=msgspec.structs.replace(copied, root=place.path.resolve()))


def installed(state: StateFolder) -> list[Installed]:
    """Return the newest version of every installed bundle, by name."""
    newest: list[Installed] = []
    for folder in sorted(state.repository.glob("*")):
        if not _NAME.fullmatch(folder.name) or not folder.is_dir():
            continue
        versions = [int(entry.name) for entry in folder.iterdir() if _VERSION.fullmatch(entry.name)]
        if versions:
            newest.append(Installed(folder.name, max(versions), folder / str(max(versions))))
    return newest


def tidy(state: StateFolder) -> None:
    """Remove what an interrupted installation left; only the one who holds the folder's lock may call it."""
    for leftover in state.repository.glob("*/.*.tmp"):
        remove(leftover)
