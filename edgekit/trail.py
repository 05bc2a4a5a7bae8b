"""The end of the trail to an accelerator: behind the bus and the device node, its libraries, and the runtime that sees it.

`edgekit.detect` follows the trail to the node and decides by it which device this is. What comes behind changes no
profile: without it the plan steps down. It is told so that an operator sees which link is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from edgekit.devices import DeviceProfile, RuntimePreference
from edgekit.probe import Finding, probe

__all__ = ["Step", "follow"]

#: Folders that the dynamic loader looks into, or that a vendor's package adds to those; `*` is one folder.
_FOLDERS = (
    "lib", "lib64", "lib/*-linux-gnu", "usr/lib", "usr/lib64", "usr/lib/*-linux-gnu", "usr/lib/*-linux-gnu/nvidia",
    "usr/lib/*-linux-gnu/tegra", "usr/local/lib", "usr/local/cuda/lib64", "opt/xilinx/xrt/lib",
)  # fmt: skip
_CPU = ("CPU", "CPUExecutionProvider")


class Step(msgspec.Struct, frozen=True):
    """One link of the trail.

    Attributes:
        step: `library` or `runtime`.
        said: What was found, or is missing, and what gives it.
        ok: Whether the link is there; None where it cannot be told.
    """

    step: str
    said: str
    ok: bool | None


def follow(
    profile: DeviceProfile,
    root: str = "/",
    *,
    find: Callable[[str], Finding] = probe,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Step, ...]:
    """Follow the trail to a detected device's accelerator; empty for a device without one.

    Args:
        profile: The device's.
        root: Where libraries are looked for; a runtime is asked only where this is the running system.
        find: Probes a runtime.
        environ: For `LD_LIBRARY_PATH`.
    """
    wanting = [each for each in profile.runtimes if _accelerators(each)]
    if not wanting:
        return ()
    base = Path(root)
    here = base.resolve() == Path("/")
    more = environ.get("LD_LIBRARY_PATH", "") if here else ""
    folders = [*_folders(base), *(Path(each) for each in more.split(os.pathsep) if each)]
    libraries = [_library(name, gives, folders, base) for name, gives in profile.libraries.items()]
    if not here:
        return (*libraries, Step("runtime", f"not asked: {root} is not the running system", None))
    return (*libraries, *(step for each in wanting for step in _runtime(each, find(each.runtime))))


def _accelerators(preference: RuntimePreference) -> list[str]:
    return [each for each in preference.providers if each not in _CPU]


def _folders(base: Path) -> Iterator[Path]:
    for pattern in _FOLDERS:
        yield from sorted(base.glob(pattern)) if "*" in pattern else [base / pattern]


def _library(name: str, gives: str, folders: list[Path], base: Path) -> Step:
    for folder in folders:
        found = sorted(folder.glob(f"{name}*"))
        if found:
            return Step("library", f"{name} is there: /{found[0].relative_to(base)}", ok=True)
    return Step("library", f"{name} is not there: {gives}", ok=False)


def _runtime(preference: RuntimePreference, found: Finding) -> Iterator[Step]:
    if found.problem:
        state = "is not installed" if found.missing else f"is installed but broken ({found.problem})"
        yield Step("runtime", f"{preference.runtime} {state}: see `edgekit doctor`", ok=False)
        return
    for wanted in _accelerators(preference):
        ok = any(each == wanted or each.startswith(f"{wanted}.") for each in found.providers)
        sees = f"sees {wanted}" if ok else f"does not see {wanted}, only {', '.join(found.providers)}"
        yield Step("runtime", f"{found.version} {sees}", ok=ok)
