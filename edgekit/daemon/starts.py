"""Loads that ended the daemon: counted on disk before each of them, so that a crash loop is seen by the next start.

A load is written down, durably, before it begins, and struck out when the daemon ends as it was told to or serves the
version no longer. What is still there was cut short: by a crash, the watchdog or the power.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from edgekit.state import StateFolder, write_durably

__all__ = ["MOST_STARTS", "WITHIN_S", "Begun", "Now", "Starts", "cut_short", "now"]

_log = logging.getLogger("edgekit.daemon")

#: So many starts with one version within that many seconds are a crash loop.
MOST_STARTS, WITHIN_S = 3, 300.0
_MOST_KEPT = 200
_MOST_BYTES = 1 << 18


class Now(msgspec.Struct, frozen=True):
    """When something is, for devices whose clock may be wrong until the network sets it.

    Attributes:
        boot: The kernel's id of this boot.
        up_s: Seconds since then, sleep among them.
        wall_s: Seconds since 1970, as far as the device knows.
    """

    boot: str
    up_s: float
    wall_s: float


class Begun(msgspec.Struct, frozen=True):
    """A load that was begun.

    Attributes:
        run: The daemon's process, by a random number.
        name: The model.
        version: Its version.
        at: When.
        loaded: Whether it came to its end.
    """

    run: str
    name: str
    version: int
    at: Now
    loaded: bool = False


def now() -> Now:
    """Return the time."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # hidden by a sandbox
        boot = ""
    return Now(boot, time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


def _age_s(then: Now, at: Now) -> float:
    """Return how long ago something was; by the wall clock, where the device was started anew since."""
    if then.boot == at.boot:
        return at.up_s - then.up_s
    return max(0.0, at.wall_s - then.wall_s)  # set back: as if it had just been


def cut_short(begun: Sequence[Begun], run: str, name: str, version: int, at: Now) -> int:
    """Return how many earlier runs were cut short, lately, with a version to blame.

    To blame is what was being loaded when a run ended; where nothing was, everything that was served.

    Args:
        begun: What is on disk.
        run: The present run, which goes on.
        name: The model.
        version: Its version.
        at: Now.
    """
    recent = [load for load in begun if load.run != run and _age_s(load.at, at) <= WITHIN_S]
    while_loading = {load.run for load in recent if not load.loaded}
    mine = [load for load in recent if (load.name, load.version) == (name, version)]
    return len({load.run for load in mine if not load.loaded or load.run not in while_loading})


class Starts:
    """The file of loads; used by the one daemon that holds the state folder, from any of its threads in turn.

    Args:
        state: The state folder.
        clock: The time.
    """

    def __init__(self, state: StateFolder, clock: Callable[[], Now] = now) -> None:
        self._path, self._clock = state.root / "starts.json", clock
        self._run = os.urandom(8).hex()
        self._begun = self._read()

    def begin(self, name: str, version: int) -> int:
        """Write down that a load begins, durably; return how many starts with it there have been, this one included.

        A disk that cannot be written is logged: a good version is served all the same.
        """
        at = self._clock()
        others = [load for load in self._begun if _age_s(load.at, at) <= WITHIN_S]
        self._begun = [*self._without(others, name, version), Begun(self._run, name, version, at)][
            -_MOST_KEPT:
        ]
        try:
            write_durably(self._path, msgspec.json.encode(self._begun) + b"\n")
        except OSError as error:
            _log.error("cannot write %s, a crash loop would not be seen: %s", self._path, error.strerror)
        return 1 + cut_short(self._begun, self._run, name, version, at)

    def loaded(self, name: str, version: int) -> None:
        """Take note that the load has come to its end: whatever happens now is not that load's doing alone."""
        self._begun = [
            msgspec.structs.replace(load, loaded=True)
            if (load.run, load.name, load.version) == (self._run, name, version)
            else load
            for load in self._begun
        ]
        self._note()

    def ended(self, name: str, version: int) -> None:
        """Take note that the version is served no longer, or was not loaded after all."""
        self._begun = self._without(self._begun, name, version)
        self._note()

    def clear(self) -> None:
        """Forget everything: the daemon ends as it was told to."""
        self._begun = []
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _without(self, begun: Sequence[Begun], name: str, version: int) -> list[Begun]:
        mine = (self._run, name, version)
        return [load for load in begun if (load.run, load.name, load.version) != mine]

    def _note(self) -> None:
        """Write for the case of a crash of this process; what the power's may lose makes a crash loop no shorter."""
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(self._begun) + b"\n")
            temporary.replace(self._path)
        except OSError as error:  # the next start may blame a load that was none; no reason to stop here
            _log.warning("cannot write %s: %s", self._path, error.strerror)

    def _read(self) -> list[Begun]:
        try:
            with self._path.open("rb") as stream:
                return msgspec.json.decode(stream.read(_MOST_BYTES), type=list[Begun])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            _log.warning("%s cannot be read and does not count: %s", self._path, error)
            return []
