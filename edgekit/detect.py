"""What device this is: signals read under a root, and a pure decision on them that gives its reasons.

Nothing is claimed that was not seen: an accelerator on the bus counts only with its driver bound and its
device node made, and an unknown board is the generic profile of its architecture.
"""

from __future__ import annotations

import os
import platform
import re
import stat
import struct
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from edgekit.devices import DeviceProfile, MatchSignals, load_profile, profile_ids
from edgekit.errors import UnavailableError

__all__ = ["Detection", "PciDevice", "Signals", "detect", "host_isa", "isa_name", "read_signals", "recognise"]

#: The features that change what integer kernels compute or how fast, strongest first.
_ISA_LEVELS = {
    "x86-64": ("amx-int8", "avx512-vnni", "avx-vnni", "avx512", "avx2"),
    "aarch64": ("i8mm", "asimddp"),
}

#: The kernel's word in /proc/cpuinfo to ours; arch/x86/include/asm/cpufeatures.h and
#: Documentation/arch/arm64/elf_hwcaps.rst in the Linux kernel. 32-bit Arm says `neon` itself.
_FEATURES = {
    "x86-64": {
        "avx2": "avx2",
        "avx_vnni": "avx-vnni",
        "avx512f": "avx512",
        "avx512_vnni": "avx512-vnni",
        "amx_int8": "amx-int8",
    },
    "aarch64": {
        "asimd": "neon",
        "neon": "neon",
        "asimdhp": "asimdhp",
        "asimddp": "asimddp",
        "i8mm": "i8mm",
        "bf16": "bf16",
        "sve": "sve",
        "sve2": "sve2",
    },
}

_NO_WHEELS = "LiteRT and ONNX Runtime publish no current wheels for it; install a 64-bit OS, or build a wheel"

_MACHINES = {
    "x86_64": "x86-64",
    "amd64": "x86-64",
    "aarch64": "aarch64",
    "arm64": "aarch64",
    "armv8l": "aarch64",
}


class PciDevice(msgspec.Struct, frozen=True):
    """One device on the PCI bus.

    Attributes:
        address: Such as `0000:00:0b.0`.
        id: `vendor:device` in hexadecimal.
        driver: Kernel driver bound to it, empty where none is.
        nodes: Device nodes that its driver made, such as `/dev/accel/accel0`, of those that exist.
        usable: Whether this user may open one of the nodes.
        access: Mode and owner of the first node, such as `crw-rw---- root:render`.
        loaded: Whether the driver that a profile wants is loaded, as far as the kernel shows its modules.
    """

    address: str
    id: str
    driver: str = ""
    nodes: tuple[str, ...] = ()
    usable: bool = False
    access: str = ""
    loaded: bool = False


class Signals(msgspec.Struct, frozen=True):
    """What was read; an empty value was not there.

    Attributes:
        arch: Of the kernel: `x86-64`, `aarch64`, or as the system calls it.
        bits: Of the userland, 32 or 64; None where nothing tells.
        model: Device-tree model, or the model line of /proc/cpuinfo.
        cpu_name: An x86 CPU's name in /proc/cpuinfo.
        compatible: Device-tree `compatible` strings, most specific first.
        isa: CPU features, in our words.
        cpu_parts: `CPU part` numbers, one for each kind of core.
        l4t: NVIDIA's L4T release as (major, minor text), None where it is not L4T.
        pci: Devices on the bus that some profile speaks of.
        usb: `vendor:product` of the devices that some profile speaks of.
    """

    arch: str = ""
    bits: int | None = None
    model: str = ""
    compatible: tuple[str, ...] = ()
    isa: tuple[str, ...] = ()
    cpu_parts: tuple[str, ...] = ()
    l4t: tuple[int, str] | None = None
    pci: tuple[PciDevice, ...] = ()
    usb: tuple[str, ...] = ()
    cpu_name: str = ""


class Detection(msgspec.Struct, frozen=True):
    """What the device is, and why.

    Attributes:
        profile_id: Id of the profile that fits best.
        reasons: The trail: what was seen, what was missing, what follows.
        signals: What was read, as text, for the reader.
        isa: CPU features, in a profile's words.
        arch: Of the userland: `x86-64`, `aarch64`, or `armv7l` on a 32-bit system.
    """

    profile_id: str
    reasons: tuple[str, ...]
    signals: dict[str, str] = {}
    isa: tuple[str, ...] = ()
    arch: str = ""

    def profile(self) -> DeviceProfile:
        """Return the profile, narrowed to the features that this CPU really has."""
        return load_profile(self.profile_id).on(self.isa)


def isa_name(arch: str, features: Collection[str]) -> str:
    """Return the name of an instruction set: two machines with the same one run the same integer kernels.

    Args:
        arch: `x86-64` or `aarch64`.
        features: CPU features, as in a profile's `isa`.

    Example:
        >>> isa_name("x86-64", ("avx2", "avx512", "avx512-vnni"))
        'x86-64+avx512-vnni'
        >>> isa_name("aarch64", ("neon",))
        'aarch64'
    """
    level = next((each for each in _ISA_LEVELS.get(arch, ()) if each in features), None)
    return f"{arch}+{level}" if level else arch


def host_isa(root: str = "/") -> str:
    """Return the name of this machine's instruction set, `isa_name` of what /proc/cpuinfo says."""
    signals = read_signals(root, ())
    return isa_name(_userland(signals), signals.isa)


def detect(root: str = "/") -> Detection:
    """Tell which device this is.

    Args:
        root: Where /proc, /sys, /etc and /dev are looked for; another root is a recorded system.

    Raises:
        UnavailableError: Not even the architecture can be told, or no profile is for it.
    """
    profiles = tuple(load_profile(each) for each in profile_ids())
    return recognise(read_signals(root, profiles), profiles)


def read_signals(root: str, profiles: Iterable[DeviceProfile]) -> Signals:
    """Read what tells a device under `root`; of PCI and USB, what the profiles speak of."""
    base, profiles = Path(root), tuple(profiles)
    cpuinfo = _read(base / "proc/cpuinfo")
    arch = _arch(base, cpuinfo)
    wanted = {pci: each.match for each in profiles if each.match for pci in each.match.pci}
    tree = next(
        (
            folder
            for each in ("proc/device-tree", "sys/firmware/devicetree/base")
            if (folder := base / each).is_dir()
        ),
        base / "proc/device-tree",
    )
    return Signals(
        arch=arch,
        bits=_bits(base),
        model=_read(tree / "model").strip("\0\n ") or _field(cpuinfo, "Model"),
        compatible=tuple(each for each in _read(tree / "compatible").split("\0") if each),
        isa=_isa(arch, cpuinfo),
        cpu_parts=tuple(dict.fromkeys(re.findall(r"^CPU part\s*:\s*(\S+)", cpuinfo, re.MULTILINE))),
        l4t=_l4t(_read(base / "etc/nv_tegra_release")),
        pci=tuple(_pci(base, wanted)),
        usb=tuple(_usb(base, {usb for each in profiles if each.match for usb in each.match.usb})),
        cpu_name=_field(cpuinfo, "model name") if arch == "x86-64" else "",
    )


def _read(path: Path) -> str:
    """Return the file's text, or nothing where it is absent or forbidden: a missing signal is no error."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(cpuinfo: str, name: str) -> str:
    found = re.search(rf"^{name}[ \t]*:[ \t]*(.*)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else ""


def _is_here(base: Path) -> bool:
    return base.resolve() == Path("/")


def _arch(base: Path, cpuinfo: str) -> str:
    """Return the architecture; of the running system Python knows it, under an emulator too."""
    if _is_here(base):
        machine = platform.machine().lower()
        return _MACHINES.get(machine, machine)
    if " lm " in f" {_field(cpuinfo, 'flags')} ":
        return "x86-64"
    if _field(cpuinfo, "CPU architecture") == "8":
        return "aarch64"
    return "armv7l" if _field(cpuinfo, "CPU architecture") == "7" else ""


def _bits(base: Path) -> int | None:
    """Return the userland's pointer size: this Python's, or by the dynamic loaders of a recorded system."""
    if _is_here(base):
        return struct.calcsize("P") * 8
    if any((base / each).exists() for each in ("lib/ld-linux-aarch64.so.1", "lib64/ld-linux-x86-64.so.2")):
        return 64
    return 32 if (base / "lib/ld-linux-armhf.so.3").exists() else None


def _isa(arch: str, cpuinfo: str) -> tuple[str, ...]:
    """Return the CPU features. An emulator may show the host's /proc/cpuinfo: its words then match none."""
    name = "flags" if arch == "x86-64" else "Features"
    cores = [set(line.split()) for line in re.findall(rf"^{name}[ \t]*:(.*)$", cpuinfo, re.MULTILINE)]
    words = set.intersection(*cores) if cores else set()  # a kernel may run on any of the cores
    table = _FEATURES.get(arch, _FEATURES["aarch64"])
    present = {table[word] for word in words & table.keys()}
    if arch == "aarch64":
        present.add("neon")  # part of the base architecture
    return tuple(feature for feature in dict.fromkeys(table.values()) if feature in present)


def _l4t(text: str) -> tuple[int, str] | None:
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return (int(found[1]), found[2]) if found else None


def _pci(base: Path, wanted: Mapping[str, MatchSignals]) -> Iterable[PciDevice]:
    """Yield the devices wanted; a driver of class `accel`, say, makes `accel/accel0` there and under /dev."""
    try:
        folders = sorted((base / "sys/bus/pci/devices").iterdir())
    except OSError:
        return
    for folder in folders:
        vendor, device = (
            _read(folder / name).strip().removeprefix("0x").lower() for name in ("vendor", "device")
        )
        if f"{vendor}:{device}" in wanted:
            driver = re.search(r"^DRIVER=(\S+)", _read(folder / "uevent"), re.MULTILINE)
            match = wanted[f"{vendor}:{device}"]
            kind = match.node or "none"
            nodes = sorted(base / "dev" / kind / made.name for made in folder.glob(f"{kind}/{kind}*"))
            there = [node for node in nodes if node.exists()]
            yield PciDevice(
                address=folder.name,
                id=f"{vendor}:{device}",
                driver=driver[1] if driver else "",
                nodes=tuple("/" + str(node.relative_to(base)) for node in there),
                usable=any(os.access(node, os.R_OK | os.W_OK) for node in there),
                access=_access(base, there[0]) if there else "",
                loaded=bool(match.driver) and (base / "sys/module" / str(match.driver)).is_dir(),
            )


def _access(base: Path, node: Path) -> str:
    """Return a node's mode and owner, by the names in that system's /etc."""
    state = node.stat()
    owner, group = (
        next(
            (line.split(":")[0] for line in _read(base / "etc" / file).splitlines() if _is_id(line, number)),
            number,
        )
        for file, number in (("passwd", str(state.st_uid)), ("group", str(state.st_gid)))
    )
    return f"{stat.filemode(state.st_mode)} {owner}:{group}"


def _is_id(line: str, number: str) -> bool:
    return line.split(":")[2:3] == [number]


def _usb(base: Path, wanted: Collection[str]) -> Iterable[str]:
    try:
        folders = sorted((base / "sys/bus/usb/devices").iterdir())
    except OSError:
        return
    for folder in folders:
        found = ":".join(_read(folder / name).strip().lower() for name in ("idVendor", "idProduct"))
        if found in wanted:
            yield found


def recognise(signals: Signals, profiles: Collection[DeviceProfile]) -> Detection:
    """Decide which profile fits: the most specific whose identity was seen and whose conditions hold.

    Raises:
        UnavailableError: Not even the architecture can be told, or no profile is for it.
    """
    reasons: list[str] = []
    fitting: list[tuple[DeviceProfile, list[str]]] = []
    for profile in profiles:
        if profile.match is None or (profile.arch != signals.arch and not profile.withdrawn):
            continue
        seen, missing = _judge(profile.match, signals, is_family=profile.is_family)
        if seen and profile.withdrawn:
            reasons.append(f"{profile.id}: {seen[0]}, but it is not used: {profile.withdrawn}")
        elif seen and not missing:
            fitting.append((profile, seen))
        elif seen and not profile.lineage:  # once per family
            reasons.append(f"{profile.id}: {seen[0]}, but {missing[0]}")
    if fitting:
        best, seen = max(fitting, key=lambda pair: len(pair[0].lineage))
        reasons += [f"{best.id}: {each}" for each in seen]
    else:
        best = _generic(signals, profiles)
        board = f" (model {signals.model!r})" if signals.model else ""
        reasons.append(
            f"{best.id}: no known board or accelerator recognised on this {signals.arch} system{board}"
        )
    return Detection(
        profile_id=best.id,
        reasons=(*reasons, *_userland_reasons(signals)),
        signals=_as_text(signals),
        isa=signals.isa,
        arch=_userland(signals),
    )


def _judge(match: MatchSignals, signals: Signals, *, is_family: bool) -> tuple[list[str], list[str]]:
    """Return what identifies the device, and the conditions that do not hold."""
    seen = [f"the device tree says {each}" for each in match.compatible if each in signals.compatible][:1]
    seen += [f"the model is {signals.model!r}" for each in match.model if each in f"{signals.model} "][:1]
    seen += [f"the CPU is {signals.cpu_name!r}" for each in match.cpu_name if each in signals.cpu_name][:1]
    seen += [f"USB device {each}" for each in match.usb if each in signals.usb][:1]
    missing: list[str] = []
    if match.l4t_min is not None and signals.l4t is not None:
        release = f"/etc/nv_tegra_release says L4T {signals.l4t[0]}.{signals.l4t[1]}"
        if signals.l4t[0] < match.l4t_min:
            missing.append(f"{release}, older than {match.l4t_min}")
        elif seen or is_family:  # a release tells the family, never the member
            seen.append(release)
    devices = [device for device in signals.pci if device.id in match.pci]
    trails = [_pci_trail(match, device) for device in devices]
    if trails:
        best = min(trails, key=lambda trail: len(trail[1]))
        seen += best[0]
        missing += best[1]
    return seen, missing


def _pci_trail(match: MatchSignals, device: PciDevice) -> tuple[list[str], list[str]]:
    """Follow one device from the bus to its node."""
    seen = [f"PCI device {device.id} at {device.address}"]
    if match.driver and device.driver != match.driver:
        loaded = (
            "its module is loaded" if device.loaded else f"its module is not loaded: modprobe {match.driver}"
        )
        return seen, [f"its driver {match.driver} is not bound (got {device.driver or 'none'}; {loaded})"]
    if match.driver:
        seen.append(f"driver {device.driver} is bound")
    if match.node and not device.nodes:
        return seen, [f"there is no node under /dev/{match.node}"]
    if match.node:
        seen.append(f"node {device.nodes[0]} is there")
        seen.append(f"this user may {'' if device.usable else 'not '}open it{_permission(device)}")
    return seen, []


def _permission(device: PciDevice) -> str:
    """Return the node's mode and owner, and how a user gets in who may not."""
    told = f" ({device.access})" if device.access else ""
    if device.usable:
        return told
    mode, _, owner = device.access.partition(" ")
    group = owner.partition(":")[2]
    if mode[4:6] == "rw" and group not in ("", "root"):
        return f"{told}: sudo usermod -aG {group} $USER, then log in again"
    return f"{told}: a udev rule must give it to a group, see the notes of the profile"


def _generic(signals: Signals, profiles: Collection[DeviceProfile]) -> DeviceProfile:
    for profile in profiles:
        if profile.match is None and profile.is_family and profile.arch == signals.arch:
            return profile
    arm32 = signals.arch.startswith("armv")
    raise UnavailableError(
        "no device profile is for this system",
        got=f"architecture {signals.arch or 'unknown: no readable /proc/cpuinfo'}",
        expected=" or ".join(sorted({profile.arch for profile in profiles})),
        hint=f"On 32-bit Arm, {_NO_WHEELS}." if arm32 else "Name the device with --device.",
    )


def _userland(signals: Signals) -> str:
    return "armv7l" if signals.arch == "aarch64" and signals.bits == 32 else signals.arch


def _userland_reasons(signals: Signals) -> list[str]:
    if _userland(signals) != "armv7l":
        return []
    return [f"the userland is 32-bit: {_NO_WHEELS}"]


def _as_text(signals: Signals) -> dict[str, str]:
    """Return the signals that were there, for people and for JSON."""
    text = {
        "arch": signals.arch,
        "userland_bits": str(signals.bits or ""),
        "model": signals.model,
        "cpu_name": signals.cpu_name,
        "usb": ", ".join(signals.usb),
        "compatible": ", ".join(signals.compatible),
        "isa": ", ".join(signals.isa),
        "cpu_parts": ", ".join(signals.cpu_parts),
        "l4t": ".".join(map(str, signals.l4t)) if signals.l4t else "",
    }
    for device in signals.pci:
        node = ", ".join(device.nodes) or "none"
        text[f"pci {device.address}"] = f"{device.id}, driver {device.driver or 'none'}, node {node}"
    return {key: value for key, value in text.items() if value}
