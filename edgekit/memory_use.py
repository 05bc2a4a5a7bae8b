"""How much memory a process has, and this one has had, as the kernel counts it."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["peak_mib", "pss_mib", "resident_mib"]


def resident_mib(pid: int | str = "self") -> float:
    """Return the resident memory of a process in MiB; 0 when it is gone."""
    fields = _text(Path(f"/proc/{pid}/statm")).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20) if len(fields) > 1 else 0.0


def peak_mib() -> float:
    """Return the most resident memory that this program has had, in MiB.

    Not `ru_maxrss`: that begins with what the process had before it became this program, the size of its parent.
    """
    return _kib(Path("/proc/self/status"), "VmHWM") / 1024 or resident_mib()


def pss_mib() -> float | None:
    """Return the proportional set size of this process in MiB; None where the kernel does not tell."""
    return _kib(Path("/proc/self/smaps_rollup"), "Pss") / 1024 or None


def _kib(path: Path, field: str) -> int:
    lines = _text(path).splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
