"""Who uses the processor: this process, others by their names, and the hypervisor. Linux only; elsewhere all is 0."""

from __future__ import annotations

import os
import resource
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

__all__ = ["CpuUse", "cpu_use", "used_between"]

#: Processes that are named, and the share of a core below which none is.
_NAMED = 3
_WORTH_NAMING = 0.1


class CpuUse(NamedTuple):
    """CPU time used since boot, in seconds.

    Attributes:
        busy_s: By everything.
        stolen_s: Kept by the hypervisor.
        own_s: By this process.
        processes: Process id to (name, seconds), this one left out; of those that can be seen.
    """

    busy_s: float
    stolen_s: float
    own_s: float
    processes: dict[int, tuple[str, float]]


class Used(NamedTuple):
    """Cores used over a stretch of time.

    Attributes:
        others_cores: By other processes.
        stolen: The hypervisor's part, as a share of all cores.
        busiest: The other processes that took most, by name, in cores.
    """

    others_cores: float
    stolen: float
    busiest: dict[str, float]


def cpu_use(root: str = "/") -> CpuUse:
    """Read what has been used so far.

    Args:
        root: Where /proc is looked for.
    """
    proc = Path(root) / "proc"
    busy, stolen = _machine(proc)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return CpuUse(busy, stolen, used.ru_utime + used.ru_stime, dict(_processes(proc)))


def _machine(proc: Path) -> tuple[float, float]:
    """Return the seconds that all cores were busy, and those that the hypervisor kept, since boot.

    The fields of /proc/stat's first line are in proc(5): user, nice, system, idle, iowait, irq, softirq, steal.
    """
    try:
        fields = (proc / "stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0.0, 0.0
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, softirq, stolen = (int(each) / ticks for each in fields)
    return user + nice + system + irq + softirq, stolen


def _processes(proc: Path) -> list[tuple[int, tuple[str, float]]]:
    """Return every other process with its name and its CPU time; proc(5) has the fields of /proc/PID/stat."""
    ticks, found = os.sysconf("SC_CLK_TCK"), []
    try:
        folders = [each for each in proc.iterdir() if each.name.isdigit() and int(each.name) != os.getpid()]
    except OSError:
        return []
    for folder in folders:
        try:
            text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has ended
        head, _, rest = text.rpartition(")")  # a name may hold anything, brackets too
        fields = rest.split()
        if len(fields) > 12:
            found.append(
                (
                    int(folder.name),
                    (head.partition("(")[2].partition("/")[0], (int(fields[11]) + int(fields[12])) / ticks),
                )
            )
    return found


def used_between(
    before: CpuUse, after: CpuUse, wall_s: float, cores: int, *, ours: Collection[int] = ()
) -> Used:
    """Return who used the processor between two readings.

    Args:
        before: The first reading.
        after: The second.
        wall_s: Seconds between them.
        cores: Of the machine.
        ours: Processes that are part of what is measured, by id: not among the others.
    """
    spent: dict[str, float] = {}
    own = after.own_s - before.own_s
    for pid, (name, seconds) in after.processes.items():
        was = before.processes.get(pid)
        used = seconds - (was[1] if was is not None and was[0] == name else 0.0)
        if pid in ours:
            own += used
        else:
            spent[name] = spent.get(name, 0.0) + used / wall_s
    others = max(0.0, (after.busy_s - before.busy_s - own) / wall_s)
    ranked = sorted(spent.items(), key=lambda pair: -pair[1])[:_NAMED]
    return Used(
        others,
        (after.stolen_s - before.stolen_s) / wall_s / cores,
        {name: round(used, 2) for name, used in ranked if used >= _WORTH_NAMING},
    )
