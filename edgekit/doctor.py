"""What this machine has and what it lacks, and the command that gives it.

Each runtime is asked in a child process: a native library that crashes takes its child down, not the page.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgekit import __version__
from edgekit.choose import EXTRAS
from edgekit.detect import detect, isa_name
from edgekit.devices import FORMATS, load_profile
from edgekit.errors import UnavailableError
from edgekit.process import python_command
from edgekit.state import state_root

__all__ = [
    "FEATURES",
    "DeviceFinding",
    "Diagnosis",
    "FeatureFinding",
    "RuntimeFinding",
    "StateFinding",
    "diagnose",
    "probe_runtime",
]

#: Extra to (what it gives, the distributions that it needs). Runtimes are asked themselves, not listed here.
FEATURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "daemon": ("a quicker event loop and HTTP parser for `edgekit serve`", ("httptools", "uvloop")),
    "agent": ("`edgekit agent`: signed reports to a sync server", ("cryptography", "urllib3")),
    "image": ("pictures as input: image files and class folders", ("pillow",)),
    "convert": ("`edgekit convert`: the converters and the gate", ("tensorflow", "tf2onnx", "onnx", "nncf")),
    "deploy": ("`edgekit deploy`: bundles onto devices by ssh", ("cryptography", "packaging")),
    "sync": ("`edgekit sync serve`: the sync server", ("fastapi", "uvicorn", "sqlalchemy", "alembic")),
}

#: Run in the child: prints one JSON line, whatever the native library prints before.
_PROBE = """
import json, sys
from edgekit.errors import EdgeKitError
from edgekit.runtimes import get_runtime
try:
    runtime = get_runtime(sys.argv[1])
    answer = {"version": runtime.version(), "providers": list(runtime.providers())}
except (EdgeKitError, ImportError, OSError) as error:
    cause = error.__cause__ if not isinstance(error.__cause__, ModuleNotFoundError) else None
    answer = {
        "problem": getattr(error, "what", None) or str(error),
        "detail": str(getattr(error, "got", None) or cause or ""),
    }
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class RuntimeFinding:
    """One runtime here.

    Attributes:
        name: Its name in the table.
        version: Library and version, empty where it does not work.
        providers: Execution providers or devices that it has here.
        problem: Why it cannot be used, empty where it can.
        gives: What it runs.
        preferred: Whether the detected device's profile lists it.
        command: The command that installs it, empty where it works.
    """

    name: str
    version: str
    providers: tuple[str, ...]
    problem: str
    gives: str
    preferred: bool
    command: str


@dataclass(frozen=True)
class FeatureFinding:
    """One extra that is not a runtime: what it gives, which distributions are missing, how to get them."""

    extra: str
    gives: str
    missing: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class DeviceFinding:
    """The detected device; `id` is empty where none could be told, and `reasons` says why."""

    id: str
    name: str
    isa: str
    verified: str
    reasons: tuple[str, ...]
    signals: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class StateFinding:
    """Where the state is or would be.

    Attributes:
        folder: Its path.
        exists: Whether it has been made.
        writable: Whether this user can write there, or make it.
        free_mib: Free space of its file system in MiB.
    """

    folder: str
    exists: bool
    writable: bool
    free_mib: int


@dataclass(frozen=True)
class Diagnosis:
    """The whole page."""

    edgekit: str
    python: str
    system: str
    device: DeviceFinding
    runtimes: tuple[RuntimeFinding, ...]
    features: tuple[FeatureFinding, ...]
    state: StateFinding

    def as_json(self) -> dict[str, Any]:
        """Return plain data; the keys are the attributes' names."""
        return asdict(self)


def diagnose(*, root: str = "/", state_dir: str | None = None, timeout_s: float = 60.0) -> Diagnosis:
    """Look at the device, the runtimes, the extras and the state folder; change nothing.

    Args:
        root: Where the device's signals are looked for.
        state_dir: The state folder, where it is not the default one.
        timeout_s: Longest wait for one runtime, in seconds.
    """
    device = _device(root)
    wanted = {each.runtime for each in load_profile(device.id).runtimes} if device.id else set[str]()
    return Diagnosis(
        edgekit=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver()) or 'unknown libc'}",
        device=device,
        runtimes=tuple(
            probe_runtime(name, preferred=name in wanted, timeout_s=timeout_s)
            for name in FORMATS
            if name in EXTRAS
        ),
        features=tuple(_feature(extra) for extra in FEATURES),
        state=_state(state_root(state_dir)),
    )


def _device(root: str) -> DeviceFinding:
    try:
        found = detect(root)
    except UnavailableError as error:
        return DeviceFinding("", "", "", "", (str(error),), {}, ())
    profile = load_profile(found.profile_id)
    isa = isa_name(found.arch, found.isa)
    return DeviceFinding(
        profile.id, profile.name, isa, profile.verified, found.reasons, found.signals, profile.notes
    )


def probe_runtime(
    name: str, *, preferred: bool = False, timeout_s: float = 60.0, command: Sequence[str] | None = None
) -> RuntimeFinding:
    """Ask one runtime for its version and providers, in a child process.

    Args:
        name: The runtime.
        preferred: Whether the device's profile lists it.
        timeout_s: Longest wait, in seconds.
        command: Another child to ask, which prints the same line of JSON.
    """
    answer = _ask(command or python_command("-c", _PROBE, name), timeout_s)
    problem = ": ".join(each for each in (answer.get("problem", ""), answer.get("detail", "")) if each)
    return RuntimeFinding(
        name=name,
        version=answer.get("version", ""),
        providers=tuple(answer.get("providers", ())),
        problem=problem,
        gives=f"runs {' and '.join(FORMATS[name])} artifacts",
        preferred=preferred,
        command=_pip(EXTRAS[name]) if problem else "",
    )


def _ask(command: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """Run the child and return its answer, or how it failed to give one."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return {"problem": f"gave no answer within {timeout_s:g} s"}
    last = done.stdout.strip().rpartition("\n")[2]
    try:
        answer = json.loads(last)
    except ValueError:
        answer = None
    if done.returncode == 0 and isinstance(answer, dict):
        return answer
    said = done.stderr.strip().rpartition("\n")[2]
    return {"problem": f"broken: {_ending(done.returncode)} while it was loaded", "detail": said}


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _pip(extra: str) -> str:
    return f"pip install 'edgekit-deploy[{extra}]'"


def _feature(extra: str) -> FeatureFinding:
    gives, needs = FEATURES[extra]
    missing = _missing(needs)
    return FeatureFinding(extra, gives, missing, _pip(extra) if missing else "")


def _missing(distributions: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in distributions if not any(metadata.distributions(name=name)))


def _state(root: Path) -> StateFinding:
    """Look at the folder, or at the nearest one above it that exists."""
    above = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    return StateFinding(
        folder=str(root),
        exists=root.is_dir(),
        writable=above.is_dir() and os.access(above, os.W_OK | os.X_OK),
        free_mib=shutil.disk_usage(above).free >> 20,
    )
