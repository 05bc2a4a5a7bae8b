"""The repository of installed bundles: `<name>/<version>/` in the state folder, and each model's slots.

One version of one name never changes: what is there is whole, and what is not whole has a hidden name. Which version
is served is said by the slots alone, see `edgekit.daemon.slots`.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgekit.atomic import remove, staged
from edgekit.bundle import Bundle, open_bundle
from edgekit.daemon.slots import Slots, Version, change, filled, offered, read_slots
from edgekit.errors import InvalidFileError, MachineError, UsageError
from edgekit.state import StateFolder, fsync_folder, make_folders

__all__ = [
    "Installed",
    "Shelved",
    "can_install",
    "install",
    "installed",
    "prune",
    "reopen",
    "shelved",
    "tidy",
]

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


class Shelved(NamedTuple):
    """One name of the repository.

    Attributes:
        slots: Its slots.
        versions: What is there, the newest first.
    """

    name: str
    slots: Slots
    versions: tuple[int, ...]


def can_install(name: str) -> bool:
    """Tell whether a bundle of that name can be installed: it becomes a folder's."""
    return _NAME.fullmatch(name) is not None


def install(path: str | Path, state: StateFolder) -> Installed:
    """Copy a bundle, a folder or an archive, into the repository and put it up as its name's candidate.

    Whole or not at all, durably. A bundle that is there already stays as it is; a damaged copy of it is replaced.

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
    with _installing(state, wait=True):
        place = _placed(bundle, Installed(name, version, state.repository / name / str(version)))
        change(state, name, lambda slots: offered(slots, Version(version, bundle.digest)))
    return place


def _placed(bundle: Bundle, place: Installed) -> Installed:
    there = _whole(place.path)
    if there is not None and there.digest != bundle.digest:
        raise UsageError(
            f"version {place.version} of {place.name} is installed with another content",
            got=bundle.digest[:12],
            expected=there.digest[:12],
            hint=f"Give the new bundle another version: edgekit convert … --version {place.version + 1}.",
        )
    if there is not None and bundle.kept <= there.kept:
        return place._replace(opened=there)
    # damaged, or a slice that lacks files which are offered now
    with staged(place.path, overwrite=place.path.exists(), replaceable=Path.is_dir) as temporary:
        shutil.copytree(bundle.root, temporary)
        copied = open_bundle(temporary)  # what was copied is what was checked
    return place._replace(opened=msgspec.structs.replace(copied, root=place.path.resolve()))


def _whole(path: Path) -> Bundle | None:
    try:
        return open_bundle(path) if path.exists() else None
    except InvalidFileError:
        return None


def reopen(state: StateFolder, name: str, version: Version) -> Bundle:
    """Open an installed version, every file's hash checked.

    Raises:
        InvalidFileError: It is damaged, gone, or another bundle than the one in the slot.
    """
    path = state.repository / name / str(version.version)
    if not path.is_dir():
        raise InvalidFileError(f"version {version.version} of {name} is not installed any more")
    bundle = open_bundle(path)
    if version.digest not in ("", bundle.digest):
        raise InvalidFileError(
            f"version {version.version} of {name} has another content",
            got=bundle.digest[:12],
            expected=version.digest[:12],
            hint="Install it again.",
        )
    return bundle


def shelved(state: StateFolder) -> list[Shelved]:
    """Return every name that has a version or something in its slots, by name.

    Where there are no slots, because an earlier EdgeKit installed it or they are damaged, the newest version is the
    candidate.
    """
    found: list[Shelved] = []
    for folder in sorted(state.repository.glob("*")):
        if not can_install(folder.name) or not folder.is_dir():
            continue
        numbers = (int(entry.name) for entry in folder.iterdir() if _VERSION.fullmatch(entry.name))
        versions = tuple(sorted(numbers, reverse=True))
        slots = read_slots(folder) or Slots()
        if versions and not filled(slots):
            slots = Slots(candidate=Version(versions[0], ""))
        if filled(slots):
            found.append(Shelved(folder.name, slots, versions))
    return found


def installed(state: StateFolder) -> list[Installed]:
    """Return of every name the version that would be served, were nothing new to prove itself, by name."""
    chosen = [(each.name, (each.slots.active or filled(each.slots)[0]).version) for each in shelved(state)]
    return [Installed(name, version, state.repository / name / str(version)) for name, version in chosen]


def prune(state: StateFolder, name: str) -> None:
    """Remove the versions of a name that are in none of its slots, unless something is being installed just now."""
    with _installing(state, wait=False) as alone:
        folder = state.repository / name
        slots = read_slots(folder) if alone else None
        if slots is None:
            return
        kept = {str(version.version) for version in filled(slots)}
        for entry in sorted(folder.iterdir()):
            if _VERSION.fullmatch(entry.name) and entry.name not in kept:
                hidden = entry.with_name(f".{entry.name}.{os.urandom(6).hex()}.tmp")
                entry.rename(hidden)
                fsync_folder(folder)  # else a power cut could leave a part of it under its name
                remove(hidden)


def tidy(state: StateFolder) -> None:
    """Undo what an interrupted installation left; only the one who holds the folder's lock may call it.

    Where a file system knows no exchange of two folders, a version that was being replaced may be found moved aside: it
    goes back to its place.
    """
    if not state.repository.is_dir():
        return
    with _installing(state, wait=False) as alone:
        if not alone:
            return
        for aside in sorted(state.repository.glob("*/.*.*.old")):
            place = aside.with_name(aside.name[1:].partition(".")[0])
            if place.exists():
                remove(aside)
            else:
                aside.rename(place)
                fsync_folder(place.parent)
        for leftover in state.repository.glob("*/.*.tmp"):
            remove(leftover)


@contextmanager
def _installing(state: StateFolder, *, wait: bool) -> Iterator[bool]:
    """Keep other installations out, in this process and in others; yield whether that was possible."""
    try:
        make_folders(state.repository)
        handle = os.open(state.repository / ".install.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MachineError(f"cannot write {state.repository}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
