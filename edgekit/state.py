"""The state folder: installed bundles, outbox, identity, pinned plans; one daemon at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

import msgspec

from edgekit.errors import MachineError, UsageError

__all__ = [
    "StateFolder",
    "cache_folder",
    "fsync_folder",
    "make_folders",
    "open_state",
    "state_root",
    "write_durably",
]


class StateFolder(msgspec.Struct, frozen=True):
    """Where each part of the state lives."""

    root: Path

    @property
    def repository(self) -> Path:
        """Installed bundles: `<name>/<version>/`."""
        return self.root / "repository"

    @property
    def outbox(self) -> Path:
        """The SQLite file of windows that the server has not acknowledged."""
        return self.root / "outbox.sqlite"

    @property
    def identity(self) -> Path:
        """The device's key and its enrolment."""
        return self.root / "identity"

    @property
    def pinned(self) -> Path:
        """Plans pinned by `edgekit profile --pick`: `<digest>.json`."""
        return self.root / "pinned"

    def lock(self, owner: str) -> IO[str]:
        """Take the folder's lock for one process of a kind; it is held until the file is closed.

        Args:
            owner: `daemon` or `agent`.

        Raises:
            MachineError: Another process of that kind holds it.
        """
        handle = (self.root / f"{owner}.lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            handle.close()
            raise MachineError(
                f"another {owner} uses {self.root}",
                got=f"process {holder}",
                hint="Stop it, or give another folder with --state-dir.",
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        return handle


def open_state(folder: str | os.PathLike[str] | None = None) -> StateFolder:
    """Return the state folder of `state_root`, made if need be (mode 0700).

    Raises:
        MachineError: It cannot be made.
    """
    root = state_root(folder)
    try:
        make_folders(root, mode=0o700)
    except OSError as error:
        raise MachineError(
            f"cannot make the state folder {root}: {error.strerror}",
            hint="Give another with --state-dir or $STATE_DIRECTORY.",
        ) from error
    return StateFolder(root)


def state_root(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return where the state folder is or would be.

    The first of: `folder`, `$STATE_DIRECTORY`, `$XDG_STATE_HOME/edgekit`, `~/.local/state/edgekit`.
    """
    chosen = folder or os.environ.get("STATE_DIRECTORY")
    return Path(chosen) if chosen else _xdg("XDG_STATE_HOME", ".local/state") / "edgekit"


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/edgekit`; it may be deleted at any time."""
    return _xdg("XDG_CACHE_HOME", ".cache") / "edgekit"


def _xdg(variable: str, default: str) -> Path:
    chosen = os.environ.get(variable)
    if chosen:
        return Path(chosen)
    try:
        return Path.home() / default
    except RuntimeError as error:  # no $HOME, and no entry among the users: as in many containers
        raise UsageError("this user has no home folder", hint=f"Set ${variable} to a folder.") from error


def make_folders(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it that are missing, durably.

    Args:
        folder: The last of them.
        mode: Of the last one, if it is made, less the umask.

    Raises:
        OSError: One cannot be made, or a file is in its place.
    """
    missing = [parent for parent in folder.parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        fsync_folder(parent.parent)
    if not folder.exists():
        folder.mkdir(mode=mode, exist_ok=True)
        fsync_folder(folder.parent)
    elif not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data` so that a power cut leaves the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)
