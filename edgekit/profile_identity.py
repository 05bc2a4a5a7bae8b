"""What was measured where: everything that two profiles must share for a ratio of theirs to mean the model."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from edgekit import __version__
from edgekit.bundle import Bundle
from edgekit.detect import Detection, isa_name
from edgekit.devices import load_profile
from edgekit.engines import system_versions
from edgekit.sensors import power_mode

__all__ = ["Identity", "governors", "identify", "place_of"]


@dataclass(frozen=True)
class Identity:
    """What was measured where, so that two reports can be compared.

    Attributes:
        place: `device` where the bundle's target is this device, else `host`.
        target: Device that the bundle was made for.
        device: Detected device.
        board: Its model, or the CPU's name.
        soc: The chip, by its device-tree name or the CPU's.
        isa: Its instruction set.
        cores: CPU cores.
        governor: CPU frequency governor, several where cores differ, empty where there is none to see.
        governors: Core to its governor.
        power_mode: A Jetson's `nvpmodel` or a PC's platform profile; empty where there is none.
        kernel: The operating system's.
        system: What providers build on: JetPack, TensorRT, CUDA, drivers, as far as they are there.
        load_average: 1, 5 and 15 minutes, before anything was measured.
        python: Version.
        edgekit: Version.
        bundle: Name and version.
        digest: The bundle's.
    """

    place: str
    target: str
    device: str
    board: str
    soc: str
    isa: str
    cores: int
    governor: str
    governors: dict[str, str]
    power_mode: str
    kernel: str
    system: dict[str, str]
    load_average: tuple[float, float, float]
    python: str
    edgekit: str
    bundle: str
    digest: str


def identify(bundle: Bundle, here: Detection, cores: int, root: str = "/") -> Identity:
    """Return what is measured where; reads the machine's load, governors, power mode and versions.

    Args:
        bundle: What is measured.
        here: The detected device.
        cores: Of this machine.
        root: Where /etc, /proc, /sys, /usr and /var are looked for.
    """
    target = bundle.manifest.plan.device
    each = governors(Path(root) / "sys/devices/system/cpu")
    compatible = here.signals.get("compatible", "").split(", ")
    cpu = here.signals.get("cpu_name") or _cpu_name(Path(root))
    return Identity(
        place=place_of(target, here.profile_id),
        target=target,
        device=here.profile_id,
        board=here.signals.get("model") or cpu,
        soc=compatible[-1] or cpu,
        isa=isa_name(here.arch, here.isa),
        cores=cores,
        governor=", ".join(sorted(set(each.values()))),
        governors=each,
        power_mode=power_mode(root),
        kernel=f"{platform.system()} {platform.release()}",
        system=system_versions(root),
        load_average=os.getloadavg(),
        python=platform.python_version(),
        edgekit=__version__,
        bundle=f"{bundle.manifest.name} {bundle.manifest.version}",
        digest=bundle.digest,
    )


def place_of(target: str, detected: str) -> str:
    """Tell what a latency measured here counts for.

    >>> place_of("raspberry-pi-4", "x86-64"), place_of("raspberry-pi", "raspberry-pi-5")
    ('host', 'device')
    """
    return "device" if target in (detected, *load_profile(detected).lineage) else "host"


def _cpu_name(base: Path) -> str:
    try:
        text = (base / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def governors(folder: Path) -> dict[str, str]:
    """Return the frequency governor of each core, in their order; empty where none is shown.

    Args:
        folder: /sys/devices/system/cpu.
    """
    found = {}
    for path in folder.glob("cpu[0-9]*/cpufreq/scaling_governor"):
        try:
            found[path.parent.parent.name] = path.read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            continue  # the core was switched off meanwhile
    return dict(sorted(found.items(), key=lambda pair: int(pair[0][3:])))
