"""May this bundle go onto that device? Decided on data alone, before anything changes there, with every reason."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from edgekit.choose import choose
from edgekit.daemon.repository import can_install
from edgekit.deploy.packages import Packages
from edgekit.deploy.survey import Survey
from edgekit.detect import Detection, isa_name
from edgekit.devices import DeviceProfile, load_profile
from edgekit.errors import EdgeKitError
from edgekit.manifest import Manifest, Plan

__all__ = ["Check", "check_device", "check_packages", "check_room", "is_made_for", "room_needed"]

_OLDEST_PYTHON = (3, 10)
#: Resident memory in MiB of a daemon with a small model: Python, EdgeKit and the runtime; seen on x86-64, rounded up.
_RUNTIME_MIB = {"null": 60, "litert": 75, "onnxruntime": 90, "openvino": 140}
#: A model takes its file's size, and once more for the runtime's packed weights and buffers.
_MODEL_COPIES = 2
#: While installing: the wheel that is unpacked beside what is there already, and what a file system loses to blocks.
_DISK_SLACK = 1.1
_MIB = 1 << 20


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        name: Such as `python`.
        passed: Whether deploying may go on.
        said: What was seen, and where it did not pass, what to do.
    """

    name: str
    passed: bool
    said: str


def is_made_for(target: DeviceProfile, detection: Detection) -> bool:
    """Tell whether what was made for a target suits the detected device.

    It does for the device itself and for its families; and for a target that no signal tells, such as one that is named
    by its instruction set, where the device is of the family and has those features.
    """
    if target.id in (detection.profile_id, *load_profile(detection.profile_id).lineage):
        return True
    kin = detection.profile_id in target.lineage
    return kin and target.match is None and set(target.isa) <= set(detection.isa)


def check_device(
    survey: Survey, manifest: Manifest, kept: frozenset[str], *, device: str | None, runtime: str | None
) -> tuple[tuple[Check, ...], Plan | None]:
    """Check what can be told from the device alone, and plan for it.

    Args:
        survey: The device.
        manifest: The bundle's.
        kept: Artifacts that are here.
        device: A profile given by hand, which then counts instead of the detected one.
        runtime: The only runtime to consider.

    Returns:
        The checks, and the plan where there is one.
    """
    detection = survey.detection
    profile = load_profile(device).on(detection.isa) if device else detection.profile()
    checks = [
        *_name(manifest),
        _target(manifest, detection, device),
        _isa(profile, survey),
        *_system(survey),
        _install(profile),
    ]
    try:
        plan = choose(profile, manifest, None, kept=kept, runtime=runtime, forced=runtime is not None)
    except EdgeKitError as error:
        return (*checks, Check("plan", passed=False, said=str(error))), None
    where = f" on {plan.providers[0]}" if plan.providers else ""
    checks.append(Check("plan", passed=True, said=f"{plan.artifact} in {plan.runtime}{where}"))
    checks.append(_memory(survey, manifest, plan))
    return tuple(checks), plan


def _name(manifest: Manifest) -> Iterator[Check]:
    if not can_install(manifest.name):
        yield Check(
            "name",
            passed=False,
            said=f"{manifest.name!r} is no name for an installed bundle: letters, digits, . _ -",
        )


def _target(manifest: Manifest, detection: Detection, device: str | None) -> Check:
    found, target = detection.profile_id, manifest.plan.device
    if device:
        return Check("device", passed=True, said=f"{device}, given by hand; detected as {found}")
    fits = is_made_for(load_profile(target), detection)
    said = f"{found}, and the bundle was made for {target}"
    hint = f". Convert again with --target {found}, or, if you know that it is one, say --device {target}"
    return Check("device", fits, said if fits else said + hint)


def _isa(profile: DeviceProfile, survey: Survey) -> Check:
    detection = survey.detection
    here = isa_name(detection.arch, detection.isa)
    if detection.arch != profile.arch or survey.bits != 64:
        return Check(
            "instruction set",
            passed=False,
            said=f"the userland is {survey.bits}-bit {detection.arch}, {profile.id} is 64-bit {profile.arch}. "
            "Install a 64-bit system there",
        )
    return Check("instruction set", passed=True, said=here)


def _system(survey: Survey) -> Iterator[Check]:
    version = tuple(int(part) for part in survey.python.split(".")[:2] if part.isdecimal())
    right = version >= _OLDEST_PYTHON and survey.implementation == "CPython" and survey.venv
    said = f"{survey.implementation} {survey.python}{'' if survey.venv else ' without venv'}"
    more = (
        "; 3.10 or newer is needed, with venv (Debian, Raspberry Pi OS: apt-get install python3 python3-venv)"
    )
    yield Check("python", right, said if right else said + more)
    glibc = f"glibc {survey.glibc}" if survey.glibc else "no glibc: wheels are made for glibc, not for musl"
    yield Check("C library", bool(survey.glibc), glibc)


def _install(profile: DeviceProfile) -> Check:
    if profile.install == "full":
        return Check("profile", passed=True, said=f"{profile.id}: EdgeKit runs there")
    return Check(
        "profile", passed=False, said=f"{profile.id} is {profile.install}: EdgeKit itself cannot run there"
    )


def _memory(survey: Survey, manifest: Manifest, plan: Plan) -> Check:
    model = sum(manifest.files[name].bytes for name in manifest.artifacts[plan.artifact].files)
    need = _RUNTIME_MIB.get(plan.runtime, 100) + _MODEL_COPIES * model / _MIB
    said = f"{survey.ram_mib} MiB free, {need:.0f} MiB needed"
    enough = survey.ram_mib >= need
    return Check(
        "memory", enough, said if enough else said + ". Stop what else runs there, or take a smaller artifact"
    )


def check_packages(packages: Packages | None, problem: EdgeKitError | None, survey: Survey) -> Check:
    """Check that everything that must be installed has a wheel for the device."""
    if packages is None:
        return Check("wheels", passed=False, said=str(problem))
    there = packages.key in survey.environments
    size = "installed there already" if there else f"{packages.bytes / 1e6:.1f} MB to send"
    said = (
        f"{len(packages.wheels)} for Python {survey.python}, {survey.machine}, glibc {survey.glibc}: {size}"
    )
    return Check("wheels", passed=True, said="; ".join([said, *packages.notes]))


def room_needed(packages: Packages, manifest: Manifest, plan: Plan, survey: Survey) -> int:
    """Return the bytes that the device's disk must have free: at the fullest moment, not in the end."""
    artifact = manifest.artifacts[plan.artifact].files
    others = {file for each in manifest.artifacts.values() for file in each.files} - set(artifact)
    bundle = sum(entry.bytes for name, entry in manifest.files.items() if name not in others)
    environment = 0
    if packages.key not in survey.environments:
        environment = packages.bytes + packages.unpacked_bytes
    return int(_DISK_SLACK * (environment + 2 * bundle))  # as it is sent, and in the repository


def check_room(survey: Survey, need: int) -> Check:
    """Check the free room on the device's disk, in bytes."""
    enough = survey.free_bytes >= need
    said = f"{survey.free_bytes / 1e6:,.0f} MB free at {survey.root}, {need / 1e6:,.0f} MB needed"
    return Check("disk", enough, said if enough else said + ". Make room, or give another folder with --to")
