"""Wheels for another machine: what a device's extras need, found and unpacked here for its architecture and C library."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgekit.errors import MachineError, UnavailableError

__all__ = ["DeviceSystem", "download", "install", "missing", "requirements"]

#: The oldest C library that manylinux names, and the names before those by number.
_OLDEST_GLIBC = {"aarch64": 17, "x86_64": 5, "armv7l": 17}
#: Of fetching what is missing: what was missing may need more.
_MOST_ROUNDS = 5
_OLD_NAMES = {
    "aarch64": ("manylinux2014",),
    "armv7l": ("manylinux2014",),
    "x86_64": ("manylinux2014", "manylinux2010", "manylinux1"),
}


@dataclass(frozen=True)
class DeviceSystem:
    """What a wheel must fit.

    Attributes:
        machine: As `uname -m` says: `aarch64`, `x86_64`, `armv7l`.
        glibc: Version of the C library, such as `2.36`.
        python: Such as `3.11`.
    """

    machine: str
    glibc: str
    python: str = "3.11"

    def tags(self) -> list[str]:
        """Return the platform tags that pip may choose from (PEP 600), newest first."""
        minor = int(self.glibc.partition(".")[2])
        oldest = _OLDEST_GLIBC.get(self.machine, 17)
        tags = [f"manylinux_2_{each}_{self.machine}" for each in range(minor, oldest - 1, -1)]
        return [*tags, *(f"{name}_{self.machine}" for name in _OLD_NAMES.get(self.machine, ()))]

    def markers(self) -> dict[str, str]:
        """Return what conditions in requirements are judged by (PEP 508)."""
        return {
            "extra": "",
            "implementation_name": "cpython",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }

    def __str__(self) -> str:
        """Return it in a few words."""
        return f"{self.machine} with glibc {self.glibc} and Python {self.python}"


def requirements(extras: Sequence[str], *, as_here: bool = False, python: str = "3.11") -> list[str]:
    """Return what EdgeKit needs with some extras, as pip takes it.

    Args:
        extras: Of `edgekit-deploy`.
        as_here: Ask for the versions that this machine has, of what it has.
        python: The device's; pip itself goes by the one that it runs on.
    """
    found = []
    for line in metadata.requires("edgekit-deploy") or []:
        requirement, _, marker = line.partition(";")
        if not all(_holds(clause, extras, python) for clause in marker.split(" and ") if clause.strip()):
            continue
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None
        here = _version_here(name[0]) if as_here else ""
        found.append(f"{name[0]}=={here}" if here else requirement.strip())
    return found


def _holds(clause: str, extras: Sequence[str], python: str) -> bool:
    """Tell whether one clause of a marker holds; EdgeKit's own speak of extras and of `python_version < …` only."""
    found = re.fullmatch(r"\s*(extra|python_version)\s*(==|<)\s*[\"']([\w.-]+)[\"']\s*", clause)
    assert found is not None, clause
    if found[1] == "extra":
        return found[3] in extras
    return _numbers(python) < _numbers(found[3])


def _numbers(version: str) -> list[int]:
    return [int(each) for each in version.split(".")]


def _version_here(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def install(system: DeviceSystem, wanted: Sequence[str], out: Path) -> None:
    """Unpack wheels, with all that they need, into a folder as it would be on the device.

    Raises:
        UnavailableError: A requirement has no wheel for the system, or this Python has no pip.
        MachineError: The index cannot be reached, or the disk is full.
    """
    _pip(system, wanted, "install", "--no-warn-conflicts", "--target", str(out))


def download(system: DeviceSystem, wanted: Sequence[str], out: Path) -> list[Path]:
    """Fetch wheels, with all that they need, into a folder, and return them; raises as `install` does."""
    _pip(system, wanted, "download", "--dest", str(out))
    for _ in range(_MOST_ROUNDS):
        lacking = missing(system, out)
        if not lacking:
            break
        _pip(system, lacking, "download", "--dest", str(out))
    return sorted(out.glob("*.whl"))


def missing(system: DeviceSystem, folder: Path) -> list[str]:
    """Return what the wheels in a folder need on the system and pip has left out.

    pip chooses wheels for another system, but judges conditions such as `python_version < "3.11"` by the Python that it
    runs on.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    there, needed = set(), {}
    for distribution in metadata.distributions(path=[str(path) for path in folder.glob("*.whl")]):
        there.add(canonicalize_name(distribution.metadata["Name"]))
        for line in distribution.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(system.markers()):
                requirement.marker = None
                needed[canonicalize_name(requirement.name)] = str(requirement)
    return [line for name, line in sorted(needed.items()) if name not in there]


def _pip(system: DeviceSystem, wanted: Sequence[str], *words: str) -> None:
    abi = f"cp{system.python.replace('.', '')}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", system.python]
    command += ["--abi", abi, "--abi", "abi3", "--abi", "none"]
    command += [word for tag in system.tags() for word in ("--platform", tag)]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
    if not done.returncode:
        return
    said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
    if "No module named pip" in done.stderr:
        raise UnavailableError(
            "this Python has no pip, which fetches the wheels", hint="Make it: python -m ensurepip."
        )
    lacking = re.search(r"No matching distribution found for (\S+)", done.stderr)
    if lacking:
        raise UnavailableError(
            f"there is no wheel of {lacking[1].rstrip(';')} for {system}",
            hint="Another version, a newer system, or a wheel of your own would do.",
        )
    reason = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1])
    raise MachineError(
        f"fetching the wheels for {system} failed: {reason[:300]}", hint="Run the command again."
    )
