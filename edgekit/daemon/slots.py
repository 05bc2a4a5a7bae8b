"""The slots of a model: which installed version is active, which it replaced, and which is still to prove itself.

One small file beside the versions, `<name>/slots.json`, holds all three. It is replaced whole and durably, so that
every change here is one atomic switch; the versions themselves never move. The changes are pure functions.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgekit.errors import InvalidFileError, MachineError
from edgekit.state import StateFolder, make_folders, write_durably

__all__ = ["Slots", "Version", "change", "filled", "offered", "read_slots", "refused", "returned", "switched"]

_log = logging.getLogger("edgekit.daemon")

_FILE = "slots.json"
_SCHEMA = 1
#: A file of three versions is not larger.
_MOST_BYTES = 1 << 16
_LONGEST_REASON = 600


class Version(msgspec.Struct, frozen=True, omit_defaults=True):
    """A version in a slot.

    Attributes:
        version: The bundle's number.
        digest: The bundle's digest: another content under that number is another version.
        memory_mib: What a process grew by when it loaded and tested it, in MiB; 0 where it was not tried.
        runtime: The runtime that it was tried in.
        proven: What else it was tried under; see `edgekit.daemon.lifecycle`.
        reason: Why it may not be active; empty where nothing speaks against it.
    """

    version: int
    digest: str
    memory_mib: float = 0.0
    runtime: str = ""
    proven: str = ""
    reason: str = ""

    def is_same(self, other: Version | None) -> bool:
        """Tell whether the other one is the same bundle."""
        return other is not None and (self.version, self.digest) == (other.version, other.digest)


class Slots(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is in the slots.

    Attributes:
        active: What is served.
        previous: What was active before, to go back to.
        candidate: What is to become active once it has proven itself; with a reason, what has failed to.
    """

    schema: int = _SCHEMA
    active: Version | None = None
    previous: Version | None = None
    candidate: Version | None = None


def filled(slots: Slots) -> list[Version]:
    """Return the versions in the slots, the active one first."""
    return [found for found in (slots.active, slots.previous, slots.candidate) if found is not None]


def offered(slots: Slots, new: Version) -> Slots:
    """Put an installed version up as the candidate; the active one again takes back what was."""
    if new.is_same(slots.active):
        pending = slots.candidate is not None and not slots.candidate.reason
        return msgspec.structs.replace(slots, candidate=None) if pending else slots
    return msgspec.structs.replace(slots, candidate=new)


def switched(slots: Slots, new: Version) -> Slots:
    """Make a version that has proven itself the active one."""
    before = slots.previous if new.is_same(slots.active) else slots.active
    waiting = None if new.is_same(slots.candidate) else slots.candidate
    return msgspec.structs.replace(slots, active=new, previous=before, candidate=waiting)


def refused(slots: Slots, version: Version, reason: str) -> Slots:
    """Keep a version that has not proven itself as a candidate with the reason; the active one stays."""
    said = msgspec.structs.replace(version, reason=" ".join(reason.split())[:_LONGEST_REASON])
    return msgspec.structs.replace(slots, candidate=said)


def returned(slots: Slots, reason: str) -> Slots:
    """Go back to the previous version; what was active becomes the candidate that was refused."""
    if slots.active is None or slots.previous is None:
        return slots
    back = msgspec.structs.replace(slots, active=slots.previous, previous=None)
    return refused(back, slots.active, reason)


def read_slots(folder: Path) -> Slots | None:
    """Return the slots of the model in `folder`; None where there are none, or none that can be read.

    Raises:
        InvalidFileError: A newer EdgeKit wrote them.
        MachineError: They cannot be read.
    """
    path = folder / _FILE
    try:
        with path.open("rb") as stream:
            data = stream.read(_MOST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MachineError(f"cannot read {path}: {error.strerror}") from error
    try:
        found = msgspec.json.decode(data, type=Slots)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        _log.warning("%s is damaged and does not count: %s", path, error)
        return None
    if found.schema > _SCHEMA:
        raise InvalidFileError(
            f"{path} is of a newer EdgeKit", got=f"schema {found.schema}", expected=f"at most {_SCHEMA}"
        )
    return found


def change(state: StateFolder, name: str, step: Callable[[Slots], Slots]) -> Slots:
    """Change a model's slots durably, one process at a time; return what they are then.

    Args:
        state: The state folder.
        name: The model.
        step: Takes the slots as they are and returns them as they shall be.

    Raises:
        InvalidFileError: A newer EdgeKit wrote them.
        MachineError: The disk is full or may not be written; nothing has changed.
    """
    folder = state.repository / name
    try:
        make_folders(folder)
        with _alone(state.repository / ".slots.lock"):
            before = read_slots(folder) or Slots()
            after = step(before)
            if after != before:
                write_durably(folder / _FILE, msgspec.json.encode(after) + b"\n")
            return after
    except OSError as error:
        raise MachineError(
            f"cannot write {folder / _FILE}: {error.strerror}", hint="Make room; nothing has changed."
        ) from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait for a lock among processes; it ends with the process at the latest."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
