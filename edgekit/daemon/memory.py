"""Whether a model fits: what it takes, measured when it was tried, against what may be had now."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

__all__ = ["RESERVE_MIB", "available_mib", "give_back", "room_mib"]

#: Left for requests, replies and everything else on the device.
RESERVE_MIB = 64.0
_CGROUPS = "sys/fs/cgroup"


def available_mib(root: str | Path = "/") -> float:
    """Return the memory in MiB that this process may still take without swapping; infinity where nothing tells.

    The least of what the kernel calls available and what the control groups above this process leave, such as the
    `MemoryMax=` of its unit.

    Args:
        root: Where /proc and /sys are.
    """
    found = [_of_machine(Path(root)), *_of_groups(Path(root))]
    return min((mib for mib in found if mib is not None), default=float("inf"))


def _of_machine(root: Path) -> float | None:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    return None


def _of_groups(root: Path) -> list[float | None]:
    own = next(
        (line[3:] for line in _text(root / "proc/self/cgroup").splitlines() if line.startswith("0::/")), None
    )
    if own is None:
        return []
    group = root / _CGROUPS / own.strip("/")
    return [_left(each) for each in (group, *group.parents) if each.is_relative_to(root / _CGROUPS)]


def _left(group: Path) -> float | None:
    most, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
    if not (most.isdecimal() and used.isdecimal()):  # `max`, or no such file
        return None
    cached = next(
        (
            int(line.split()[1])
            for line in _text(group / "memory.stat").splitlines()
            if line.startswith("inactive_file ")
        ),
        0,
    )
    return max(0.0, (int(most) - int(used) + cached) / (1 << 20))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def give_back() -> None:
    """Return to the system what a model that is gone has left in the allocator, where that is glibc's."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def room_mib(left_mib: float, allowed_mib: float | None, held_mib: float) -> float:
    """Return what one more model may take while it is loaded, in MiB: an old version of it is still there then.

    Args:
        left_mib: What the machine has left.
        allowed_mib: What all models together may take; None for no such limit.
        held_mib: What those take that are loaded.
    """
    of_machine = left_mib - RESERVE_MIB
    return max(0.0, of_machine if allowed_mib is None else min(of_machine, allowed_mib - held_mib))
