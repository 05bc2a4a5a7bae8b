"""What this machine has and what it lacks, and the command that gives it.

Each runtime is tried in a child process: a native library that crashes takes its child down, not the page. What is
found counts for the next start of everything else, too.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from edgekit import __version__
from edgekit.choose import EXTRAS
from edgekit.detect import detect, isa_name
from edgekit.devices import FORMATS, DeviceProfile, load_profile
from edgekit.errors import UnavailableError
from edgekit.probe import TIME_LIMIT_S, Finding, probe
from edgekit.state import state_root
from edgekit.trail import Step, follow

__all__ = [
    "FEATURES",
    "DeviceFinding",
    "Diagnosis",
    "FeatureFinding",
    "RuntimeFinding",
    "StateFinding",
    "diagnose",
    "runtime_finding",
]

#: Extra to (what it gives, the distributions that it needs). Runtimes are asked themselves, not listed here.
FEATURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "daemon": ("a quicker event loop and HTTP parser for `edgekit serve`", ("httptools", "uvloop")),
    "grpc": ("gRPC beside HTTP: `edgekit serve --grpc`", ("grpcio", "protobuf")),
    "agent": ("`edgekit agent`: signed reports to a sync server", ("cryptography", "urllib3")),
    "image": ("pictures as input: image files and class folders", ("pillow",)),
    "text": ("texts as input, for bundles that tokenize", ("tokenizers",)),
    "convert": ("`edgekit convert`: the converters and the gate", ("tensorflow", "tf2onnx", "onnx", "nncf")),
    "deploy": ("`edgekit deploy`: bundles onto devices by ssh", ("cryptography", "packaging")),
    "torch": ("PyTorch models as a source of `edgekit convert`", ("torch", "litert-torch")),
    "sync": ("`edgekit sync serve`: the sync server", ("fastapi", "uvicorn", "sqlalchemy", "alembic")),
}


@dataclass(frozen=True)
class RuntimeFinding:
    """One runtime here.

    Attributes:
        name: Its name in the table.
        version: Library and version, empty where it does not work.
        providers: Execution providers or devices that it has here.
        problem: Why it cannot be used, empty where it can.
        missing: It is not installed; with a problem and not missing, it is installed but broken.
        lacks: Providers that the detected device's profile wants of it and that are not here.
        gives: What it runs.
        preferred: Whether the detected device's profile lists it.
        command: The command that installs it, empty where it works or nothing is published for this system.
    """

    name: str
    version: str
    providers: tuple[str, ...]
    problem: str
    missing: bool
    lacks: tuple[str, ...]
    gives: str
    preferred: bool
    command: str


@dataclass(frozen=True)
class FeatureFinding:
    """One extra that is not a runtime: what it gives, what is missing, how to get it."""

    extra: str
    gives: str
    missing: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class DeviceFinding:
    """The detected device, and the trail to its accelerator; `id` is empty where none could be told."""

    id: str
    name: str
    isa: str
    verified: str
    reasons: tuple[str, ...]
    signals: dict[str, str]
    notes: tuple[str, ...]
    trail: tuple[Step, ...] = ()


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
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


def diagnose(*, root: str = "/", state_dir: str | None = None, timeout_s: float = TIME_LIMIT_S) -> Diagnosis:
    """Look at the device, the runtimes, the extras and the state folder; only the cache of findings is written.

    Args:
        root: Where the device's signals are looked for.
        state_dir: The state folder, where it is not the default one.
        timeout_s: Longest wait for one runtime, in seconds.
    """
    found = {name: probe(name, fresh=True, timeout_s=timeout_s) for name in FORMATS if name in EXTRAS}
    device = _device(root, found)
    profile = load_profile(device.id) if device.id else None
    return Diagnosis(
        edgekit=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver()) or 'unknown libc'}",
        device=device,
        runtimes=tuple(
            runtime_finding(name, finding, profile, device.isa) for name, finding in found.items()
        ),
        features=(*(_feature(extra) for extra in FEATURES), *_emulator(device.isa)),
        state=_state(state_root(state_dir)),
    )


def _device(root: str, runtimes: Mapping[str, Finding]) -> DeviceFinding:
    try:
        found = detect(root)
    except UnavailableError as error:
        return DeviceFinding("", "", "", "", (str(error),), {}, ())
    profile = load_profile(found.profile_id)
    isa = isa_name(found.arch, found.isa)
    return DeviceFinding(
        id=profile.id,
        name=profile.name,
        isa=isa,
        verified=profile.verified,
        reasons=found.reasons,
        signals=found.signals,
        notes=profile.notes,
        trail=follow(profile, root, find=runtimes.__getitem__),
    )


def runtime_finding(
    name: str, found: Finding, profile: DeviceProfile | None = None, isa: str = ""
) -> RuntimeFinding:
    """Return what the page says of one runtime.

    Args:
        name: The runtime.
        found: What its probe found.
        profile: The detected device's; None where none could be told.
        isa: Name of this system's instruction set.
    """
    listed = [each for each in (profile.runtimes if profile else ()) if each.runtime == name]
    wanted = [provider for each in listed for provider in each.providers]
    lacks = () if found.problem else tuple(each for each in wanted if not _has(found.providers, each))
    return RuntimeFinding(
        name=name,
        version=found.version,
        providers=found.providers,
        problem="not installed" if found.missing else found.problem,
        missing=found.missing,
        lacks=lacks,
        gives=f"runs {' and '.join(FORMATS[name])} artifacts",
        preferred=bool(listed),
        command=_mend(name, found) if found.problem and not isa.startswith("armv7") else "",
    )


def _has(providers: Collection[str], wanted: str) -> bool:
    """Tell whether a provider is there; OpenVINO calls the first of several GPUs `GPU.0`."""
    return any(each == wanted or each.startswith(f"{wanted}.") for each in providers)


def _mend(name: str, found: Finding) -> str:
    return _pip(EXTRAS[name], "" if found.missing else "--force-reinstall ")


def _pip(extra: str, how: str = "") -> str:
    return f"pip install {how}'edgekit-deploy[{extra}]'"


def _feature(extra: str) -> FeatureFinding:
    gives, needs = FEATURES[extra]
    missing = _missing(needs)
    return FeatureFinding(extra, gives, missing, _pip(extra) if missing else "")


def _emulator(isa: str) -> tuple[FeatureFinding, ...]:
    """Return what emulation lacks, on the machines that can emulate a device."""
    from edgekit.emulator import is_ready

    if not isa.startswith("x86-64"):
        return ()
    ready = is_ready()
    return (
        FeatureFinding(
            "emulator",
            "`verify --emulate` and `convert --prove emulated`: artifacts run under a device's CPU",
            () if ready else ("its environment",),
            "" if ready else "edgekit env create emulator",
        ),
    )


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
