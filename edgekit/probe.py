"""Whether a runtime that is installed works here: tried in a child process, and remembered.

A native library that does not fit its machine may raise, crash with a signal or never return. So it is imported here
only after a child process has imported it, opened a tiny model in it and run that once. The finding is kept in the
cache under everything that it depends on: the second start costs the reading of one small file.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

import msgspec

from edgekit.errors import EdgeKitError
from edgekit.runtimes import get_runtime
from edgekit.state import cache_folder, state_root, write_durably

__all__ = ["Finding", "probe", "runtime_key"]

#: Longest wait for one runtime, in seconds: a cold start from a memory card, not a hang, takes a part of it.
TIME_LIMIT_S = 60.0
#: What did not work is tried again after this long: what was missing may have come since.
BROKEN_KEPT_S = 600.0
_SCHEMA = 1


class Finding(msgspec.Struct, frozen=True):
    """What is known of one runtime here.

    Attributes:
        version: Library and version; empty where it does not work.
        providers: Execution providers or devices that it has here.
        problem: Why it cannot be used, in the words of what failed; empty where it can.
        missing: It cannot be used because it is not installed.
    """

    version: str = ""
    providers: tuple[str, ...] = ()
    problem: str = ""
    missing: bool = False


class _Record(msgspec.Struct, frozen=True):
    schema: int
    key: str
    at: float
    finding: Finding


def probe(
    name: str,
    *,
    fresh: bool = False,
    timeout_s: float = TIME_LIMIT_S,
    now: Callable[[], float] = time.time,
) -> Finding:
    """Return whether a runtime works here, from the cache where that still holds, else from a child process.

    Args:
        name: The runtime.
        fresh: Whether to try it whatever the cache says.
        timeout_s: Longest wait for the child, in seconds.
        now: The time, in seconds since 1970.

    Raises:
        UsageError: No runtime has that name.
    """
    runtime = get_runtime(name)
    if not runtime.packages:
        return Finding(runtime.version(), runtime.providers())
    key = runtime_key(name)
    if not key:
        return Finding(problem=_not_installed(name), missing=True)
    kept = None if fresh else _read(name, key, now())
    if kept is not None:
        return kept
    from edgekit.probe_run import ask

    finding = ask(name, timeout_s)
    if finding is None:  # no child can be started here, and nothing speaks against the runtime
        return Finding()
    _write(name, _Record(_SCHEMA, key, now(), finding))
    return finding


def _not_installed(name: str) -> str:
    return (
        f"the runtime {name} is not installed. Run: pip install 'edgekit-deploy[{get_runtime(name).extra}]'."
    )


def runtime_key(name: str) -> str:
    """Return a digest of what a finding depends on, without importing the runtime; empty where it is not installed.

    That is: the interpreter and what stands in front of it, the packages' places, versions and times, numpy's version,
    the system's libraries, the kernel and the processor.
    """
    places = [text for package in get_runtime(name).packages for text in _package(package)]
    if not places:
        return ""
    import numpy as np

    from edgekit import __version__

    machine = os.uname()
    words = ("EDGEKIT_LAUNCHER", "LD_LIBRARY_PATH", "LD_PRELOAD")
    parts = [
        __version__, name, *places, np.__version__,
        sys.executable, sys.prefix, platform.python_version(), *(os.environ.get(word, "") for word in words),
        machine.machine, machine.release, _time_of(Path("/etc/ld.so.cache")), *_processor(),
    ]  # fmt: skip
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _package(package: str) -> Iterator[str]:
    """Yield where a top-level package is, when it was written, and its distribution's folders beside it.

    Not the time of its own folder: the first import writes bytecode there.
    """
    spec = _spec(package)
    for place in (spec and spec.submodule_search_locations) or ():
        folder = Path(place)
        yield f"{folder} {_time_of(folder / '__init__.py')}"
        with suppress(OSError):
            beside = [each for each in folder.parent.iterdir() if each.name.lower().startswith(package)]
            about = sorted(each for each in beside if each.name.endswith(".dist-info"))
            yield " ".join(f"{each.name.lower()} {_time_of(each)}" for each in about)


def _spec(package: str) -> ModuleSpec | None:
    """Return where the child would find a package, whatever this process has imported under its name."""
    try:
        return PathFinder.find_spec(package) or find_spec(package)
    except (ImportError, ValueError):  # a module without a spec stands in its place
        return None


def _time_of(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        return ""
    return f"{state.st_mtime_ns} {state.st_size}"


def _processor() -> list[str]:
    """Return what the first processor is and can."""
    try:
        with Path("/proc/cpuinfo").open("rb", buffering=0) as stream:
            lines = stream.read(4096).decode("ascii", "replace").partition("\n\n")[0].splitlines()
    except OSError:
        return []
    told = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant")
    return [line for line in lines if line.startswith(told)]


def _file(name: str) -> Path:
    """Return where the finding of this interpreter is kept; a service has a state folder, and no home."""
    own = f"{sys.executable}\0{os.environ.get('EDGEKIT_LAUNCHER', '')}"
    folder = state_root() if os.environ.get("STATE_DIRECTORY") else cache_folder()
    return folder / "probes" / f"{name}-{hashlib.sha256(own.encode()).hexdigest()[:12]}.json"


def _read(name: str, key: str, now: float) -> Finding | None:
    try:
        record = msgspec.json.decode(_file(name).read_bytes(), type=_Record)
    except (OSError, EdgeKitError, msgspec.DecodeError):
        return None
    if (record.schema, record.key) != (_SCHEMA, key):
        return None
    lasts = not record.finding.problem or 0 <= now - record.at < BROKEN_KEPT_S
    return record.finding if lasts else None


def _write(name: str, record: _Record) -> None:
    """Keep a finding; where nothing can be written, the next start tries again."""
    with suppress(OSError, EdgeKitError):
        file = _file(name)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(file, msgspec.json.encode(record))
