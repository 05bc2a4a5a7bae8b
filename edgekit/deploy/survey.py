"""What the device says of itself, rebuilt here as a recorded system, so that detection is the same as on the device."""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec

from edgekit.deploy.link import Link, plain
from edgekit.detect import Detection, Signals, read_signals, recognise
from edgekit.devices import load_profile, profile_ids
from edgekit.errors import NetworkError

__all__ = ["Services", "Survey", "look"]

_Short = Annotated[str, msgspec.Meta(max_length=4096)]
_Word = Annotated[str, msgspec.Meta(max_length=64)]
_Few = msgspec.Meta(max_length=512)

_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_ID = re.compile(r"(0x)?[0-9a-fA-F]{4}")
_NODE = re.compile(r"[a-z]{1,16}/[a-z]{1,16}[0-9]{0,4}")
_SIGNALS = (
    "proc/cpuinfo",
    "proc/device-tree/model",
    "proc/device-tree/compatible",
    "sys/firmware/devicetree/base/model",
    "sys/firmware/devicetree/base/compatible",
    "etc/nv_tegra_release",
)
_MACHINES = {"x86_64": "x86-64", "aarch64": "aarch64", "armv8l": "aarch64"}


class _Pci(msgspec.Struct):
    vendor: _Word
    device: _Word
    driver: _Word
    nodes: dict[_Word, bool]
    made: list[_Word]


class Services(msgspec.Struct, frozen=True):
    """What of systemd is there, and what this login may do with it.

    Attributes:
        system: What `systemctl is-system-running` said; empty where there is no systemd.
        user: The same of the login's own services.
        root: The login is root's.
        sudo: The login may become root without a password.
    """

    system: _Word = ""
    user: _Word = ""
    root: bool = False
    sudo: bool = False


class _Said(msgspec.Struct):
    """An answer to `survey` as it came."""

    python: _Word
    implementation: _Word
    venv: bool
    bits: int
    machine: _Word
    glibc: _Word
    user: _Word
    home: _Short
    root: _Short
    state: _Short
    free_bytes: int
    ram_kib: int
    files: dict[str, Annotated[str, msgspec.Meta(max_length=400_000)]]
    pci: Annotated[dict[_Word, _Pci], _Few]
    usb: Annotated[list[tuple[_Word, _Word]], _Few]
    environments: Annotated[list[_Word], _Few]
    current: _Word
    services: Services


class Survey(msgspec.Struct, frozen=True):
    """What the device is and has.

    Attributes:
        detection: Which device it is, and why.
        python: Version of the Python that would be used; `implementation` is `CPython` or another.
        venv: Whether that Python can make environments.
        bits: Of its userland, 32 or 64.
        machine: Of the kernel, as `uname -m` says.
        glibc: Version of the C library; empty where it is another.
        user: The login's name.
        home: Its home folder.
        root: The folder on the device for EdgeKit, absolute.
        state: The state folder there.
        free_bytes: Free room in the file system of `root`.
        ram_mib: Memory that is free to use.
        environments: Those that are installed whole.
        current: The one that is used now, empty where none is.
        services: What of systemd is there.
    """

    detection: Detection
    python: str
    implementation: str
    venv: bool
    bits: int
    machine: str
    glibc: str
    user: str
    home: str
    root: str
    state: str
    free_bytes: int
    ram_mib: int
    environments: tuple[str, ...]
    current: str
    services: Services


def look(link: Link, root: str, state: str, *, services: bool = True) -> Survey:
    """Ask the device what it is; nothing changes there.

    Args:
        link: To the device.
        root: The folder for EdgeKit; a relative one is in the login's home.
        state: The state folder, likewise.
        services: Whether to ask for systemd and sudo too.

    Raises:
        NetworkError: What it says cannot be what a device says.
        UnavailableError: It is of an architecture that no profile is for.
    """
    profiles = tuple(load_profile(each) for each in profile_ids())
    kinds = sorted({each.match.node for each in profiles if each.match and each.match.node})
    said = link.ask("survey", _Said, root=root, state=state, kinds=kinds, services=services)
    for path in (said.root, said.state, said.home):
        if not path.startswith("/") or not path.isprintable():
            raise NetworkError(f"{link.address} names a folder that cannot be", got=plain(repr(path)))
    with tempfile.TemporaryDirectory(prefix="edgekit-") as scratch:
        _rebuild(said, Path(scratch))
        signals = read_signals(scratch, profiles)
    return Survey(
        detection=recognise(_as_there(signals, said), profiles),
        python=plain(said.python),
        implementation=plain(said.implementation),
        venv=said.venv,
        bits=said.bits,
        machine=plain(said.machine),
        glibc=plain(said.glibc),
        user=said.user,
        home=said.home,
        root=said.root,
        state=said.state,
        free_bytes=said.free_bytes,
        ram_mib=said.ram_kib // 1024,
        environments=tuple(said.environments),
        current=said.current,
        services=said.services,
    )


def _rebuild(said: _Said, tree: Path) -> None:
    """Write the signals where a recorded system has them; only names of known forms are used."""
    for name in _SIGNALS:
        if name in said.files:
            _put(tree / name, _decoded(said.files[name]))
    for address, each in said.pci.items():
        if not _PCI_ADDRESS.fullmatch(address):
            continue
        folder = tree / "sys/bus/pci/devices" / address
        _put(folder / "vendor", each.vendor.encode())
        _put(folder / "device", each.device.encode())
        _put(folder / "uevent", f"DRIVER={plain(each.driver)}\n".encode() if each.driver else b"")
        for node in (node for node in each.made if _NODE.fullmatch(node)):
            (folder / node).mkdir(parents=True, exist_ok=True)
            if node in each.nodes:
                _put(tree / "dev" / node, b"")
    for rank, pair in enumerate(said.usb):
        if all(_ID.fullmatch(each) for each in pair):
            _put(tree / f"sys/bus/usb/devices/1-{rank}/idVendor", pair[0].encode())
            _put(tree / f"sys/bus/usb/devices/1-{rank}/idProduct", pair[1].encode())


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""


def _as_there(signals: Signals, said: _Said) -> Signals:
    """Return the signals with what a copy cannot tell: architecture, pointer size, and which nodes the login may open."""
    pci = tuple(
        msgspec.structs.replace(
            each,
            usable=any(said.pci[each.address].nodes.get(node.removeprefix("/dev/")) for node in each.nodes),
        )
        for each in signals.pci
    )
    arch = _MACHINES.get(said.machine, plain(said.machine))
    return msgspec.structs.replace(
        signals,
        arch=arch,
        bits=said.bits,
        model=plain(signals.model),
        compatible=tuple(plain(each) for each in signals.compatible[:32]),
        cpu_name=plain(signals.cpu_name),
        pci=pci,
    )
