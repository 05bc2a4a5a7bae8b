"""Heat, clocks, brakes and power of the device: read under a root, so that a recorded tree does as well.

Where each comes from: thermal zones, hwmon and powercap in the kernel's Documentation/ABI; the Raspberry Pi's bits in
https://www.raspberrypi.com/documentation/computers/os.html#get_throttled; a Jetson's rails, zones and over-current
counters in the Jetson Linux Developer Guide, "Platform Power and Performance".
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from edgekit.monitor.health import zone_celsius

__all__ = [
    "Heat",
    "Sensors",
    "absent",
    "energy_j",
    "heat_of",
    "power_mode",
    "read_sensors",
    "throttled_between",
    "vcgencmd_bits",
]

#: The firmware's bits of the moment; sixteen higher, the same since boot.
_FIRMWARE = {0: "under-voltage", 1: "a capped frequency", 2: "throttling", 3: "the soft temperature limit"}
_SINCE_BOOT = 16

#: Rails of a Jetson that carry the whole module.
_WHOLE_MODULE = ("VDD_IN", "POM_5V_IN")

#: What each sensor is told by, where it is missing.
_SOURCES = {
    "temperature": "no thermal zone under /sys/class/thermal",
    "clock": "no cpufreq under /sys/devices/system/cpu",
    "throttling": "neither the firmware's bits (Raspberry Pi), nor thermal_throttle counts (Intel), nor over-current "
    "counts (Jetson)",
    "power": "neither an INA3221 under /sys/class/hwmon (Jetson) nor energy_uj under /sys/class/powercap (Intel)",
}


class Sensors(msgspec.Struct, frozen=True):
    """One look; what is not there is empty.

    Attributes:
        zones_c: Thermal zone to its temperature, in °C.
        clocks_mhz: Of each core that shows it.
        firmware: The Raspberry Pi firmware's throttle bits; None where there are none.
        counts: Throttle and over-current events since boot, by what counts them.
        rails_mw: Power rail to what it carries, in milliwatts.
        energy_uj: RAPL package to its energy counter, in microjoules.
        energy_wrap_uj: RAPL package to where its counter begins anew.
        locked: Sensors that are there and that this user may not read.
    """

    zones_c: dict[str, float] = {}
    clocks_mhz: tuple[float, ...] = ()
    firmware: int | None = None
    counts: dict[str, int] = {}
    rails_mw: dict[str, float] = {}
    energy_uj: dict[str, int] = {}
    energy_wrap_uj: dict[str, int] = {}
    locked: tuple[str, ...] = ()

    @property
    def hottest_c(self) -> float | None:
        """The hottest zone's temperature."""
        return max(self.zones_c.values(), default=None)

    @property
    def module_mw(self) -> float | None:
        """What the rail of the whole module carries; None where no rail does."""
        return next((self.rails_mw[name] for name in _WHOLE_MODULE if name in self.rails_mw), None)


class Heat(msgspec.Struct, frozen=True):
    """What the sensors said over a run.

    Attributes:
        start_c: Hottest zone before, in °C; None where there is no zone, as with the next two.
        end_c: After.
        max_c: The most in between.
        zones_c: Every zone, after.
        clock_min_mhz: Slowest core at any look; None where clocks are not shown.
        clock_mean_mhz: Over cores and looks.
        module_mw: Mean power of the whole module; None where no rail carries it.
        rails_mw: Mean power of each rail.
        package_w: Mean power of the processor's packages, from RAPL; None where it cannot be read.
        throttled: What slowed the processor down meanwhile, in words.
        absent: Sensor to why it says nothing.
    """

    start_c: float | None = None
    end_c: float | None = None
    max_c: float | None = None
    zones_c: dict[str, float] = {}
    clock_min_mhz: float | None = None
    clock_mean_mhz: float | None = None
    module_mw: float | None = None
    rails_mw: dict[str, float] = {}
    package_w: float | None = None
    throttled: tuple[str, ...] = ()
    absent: dict[str, str] = {}


def read_sensors(root: str | Path = "/") -> Sensors:
    """Read what there is; what is missing, forbidden or makes no sense is left out."""
    base = Path(root)
    energy, wrap, locked = _rapl(base / "sys/class/powercap")
    return Sensors(
        zones_c=dict(_zones(base / "sys/class/thermal")),
        clocks_mhz=tuple(_clocks(base / "sys/devices/system/cpu")),
        firmware=_firmware(base),
        counts=dict(_counts(base)),
        rails_mw={**dict(_rails(base)), **dict(_old_rails(base))},
        energy_uj=energy,
        energy_wrap_uj=wrap,
        locked=locked,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else None


def _zones(folder: Path) -> Iterator[tuple[str, float]]:
    seen: set[str] = set()
    for zone in sorted(folder.glob("thermal_zone*")):
        value = zone_celsius(zone / "temp")
        if value is not None:
            kind = _text(zone / "type") or zone.name
            name = kind if kind not in seen else f"{kind} {zone.name.removeprefix('thermal_zone')}"
            seen.add(name)
            yield name, value


def _clocks(folder: Path) -> Iterator[float]:
    for path in sorted(folder.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")):
        khz = _number(path)
        if khz:
            yield khz / 1000.0


def _firmware(base: Path) -> int | None:
    """Return the Pi's bits; without them its under-voltage alarm, which newer kernels show in their place."""
    for path in sorted(base.glob("sys/devices/platform/soc/*firmware/get_throttled")):
        bits = _hexadecimal(_text(path))
        if bits is not None:
            return bits
    for chip in sorted(base.glob("sys/class/hwmon/hwmon*")):
        if _text(chip / "name") == "rpi_volt":
            return _number(chip / "in0_lcrit_alarm")
    return None


def _hexadecimal(text: str) -> int | None:
    found = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})", text)
    return int(found[1], 16) if found else None


def vcgencmd_bits() -> int | None:
    """Ask the Raspberry Pi's `vcgencmd`, where it is installed and answers; for before and after a run, it is slow."""
    command = shutil.which("vcgencmd")
    if command is None:
        return None
    try:
        done = subprocess.run(
            [command, "get_throttled"], capture_output=True, text=True, check=False, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return _hexadecimal(done.stdout.strip()) if done.returncode == 0 else None


def _counts(base: Path) -> Iterator[tuple[str, int]]:
    """Yield throttle events: Intel's per core and package, where cores share a package once, and a Jetson's."""
    packages: dict[str, int] = {}
    cores = 0
    there = False
    for folder in sorted(base.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle")):
        there = True
        cores += _number(folder / "core_throttle_count") or 0
        package = _text(folder.parent / "topology/physical_package_id")
        packages[package] = max(packages.get(package, 0), _number(folder / "package_throttle_count") or 0)
    if there:
        yield "thermal throttling of cores", cores
        yield "thermal throttling of the package", sum(packages.values())
    for path in sorted(base.glob("sys/class/hwmon/hwmon*/oc*_event_cnt")):
        count = _number(path)
        if count is not None:
            yield f"over-current event {path.name.removesuffix('_event_cnt')}", count


def _rails(base: Path) -> Iterator[tuple[str, float]]:
    for chip in sorted(base.glob("sys/class/hwmon/hwmon*")):
        if _text(chip / "name") != "ina3221":
            continue
        for channel in (1, 2, 3):
            millivolt, milliampere = (_number(chip / f"{kind}{channel}_input") for kind in ("in", "curr"))
            label = _text(chip / f"in{channel}_label")
            if label and label != "NC" and millivolt is not None and milliampere is not None:
                yield label, millivolt * milliampere / 1000.0


def _old_rails(base: Path) -> Iterator[tuple[str, float]]:
    """Yield the rails as JetPack 4 shows them."""
    for chip in sorted(base.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*")):
        for channel in (0, 1, 2):
            power = _number(chip / f"in_power{channel}_input")
            label = _text(chip / f"rail_name_{channel}")
            if label and power is not None:
                yield label, float(power)


def _rapl(folder: Path) -> tuple[dict[str, int], dict[str, int], tuple[str, ...]]:
    """Return energy and wrap of each package, and the counters that this user may not read (root only since 5.10)."""
    energy: dict[str, int] = {}
    wrap: dict[str, int] = {}
    locked = []
    for zone in sorted(folder.glob("intel-rapl:*")):
        name = _text(zone / "name")
        if not name.startswith("package"):
            continue  # its parts, and `psys`, which holds it, would count twice
        now = _number(zone / "energy_uj")
        if now is not None:
            energy[name], wrap[name] = now, _number(zone / "max_energy_range_uj") or 0
        elif (zone / "energy_uj").exists():
            locked.append(f"/sys/class/powercap/{zone.name}/energy_uj")
    return energy, wrap, tuple(locked)


def energy_j(looks: Sequence[Sensors]) -> float | None:
    """Return what the packages used over a run, in joules; None where RAPL cannot be read.

    Args:
        looks: In order, at least one; a counter begins anew at most once between two.
    """
    if not looks[0].energy_uj or any(each.energy_uj.keys() != looks[0].energy_uj.keys() for each in looks):
        return None
    total = 0
    for before, after in pairwise(looks):
        for name, start in before.energy_uj.items():
            used = after.energy_uj[name] - start
            total += used if used >= 0 else used + before.energy_wrap_uj[name]
    return total / 1e6


def throttled_between(looks: Sequence[Sensors]) -> tuple[str, ...]:
    """Return what slowed the processor down in the course of a run, in words.

    Args:
        looks: At least one, the first before the run and the last after it.
    """
    first, last = looks[0], looks[-1]
    now = 0
    for look in looks:
        now |= look.firmware or 0
    new = (last.firmware or 0) & ~(first.firmware or 0)  # bits since boot that were not set before
    words = [
        f"the firmware reports {word}"
        for bit, word in _FIRMWARE.items()
        if now & 1 << bit or new & 1 << (bit + _SINCE_BOOT)
    ]
    words += [
        f"{count - first.counts[name]} × {name}"
        for name, count in last.counts.items()
        if count > first.counts.get(name, count)
    ]
    return tuple(words)


def absent(sensors: Sensors) -> dict[str, str]:
    """Return each sensor that says nothing, and why."""
    there = {
        "temperature": bool(sensors.zones_c),
        "clock": bool(sensors.clocks_mhz),
        "throttling": sensors.firmware is not None or bool(sensors.counts),
        "power": bool(sensors.rails_mw or sensors.energy_uj),
    }
    why = {**_SOURCES}
    if sensors.locked:
        why["power"] = f"this user may not read {', '.join(sensors.locked)} (root may)"
    return {name: why[name] for name, seen in there.items() if not seen}


def heat_of(looks: Sequence[Sensors], wall_s: float) -> Heat:
    """Sum up the looks of one run.

    Args:
        looks: At least one, the first before the run and the last after it.
        wall_s: Seconds between those two.
    """
    first, last = looks[0], looks[-1]
    hottest = [look.hottest_c for look in looks if look.hottest_c is not None]
    clocks = [clock for look in looks for clock in look.clocks_mhz]
    module = [look.module_mw for look in looks if look.module_mw is not None]
    energy = energy_j(looks)
    return Heat(
        start_c=first.hottest_c,
        end_c=last.hottest_c,
        max_c=max(hottest, default=None),
        zones_c=last.zones_c,
        clock_min_mhz=min(clocks, default=None),
        clock_mean_mhz=sum(clocks) / len(clocks) if clocks else None,
        module_mw=sum(module) / len(module) if module else None,
        rails_mw=_mean_rails([look.rails_mw for look in looks]),
        package_w=energy / wall_s if energy is not None and wall_s > 0 else None,
        throttled=throttled_between(looks),
        absent=absent(last),
    )


def _mean_rails(looks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(look.get(name, 0.0) for look in looks) / len(looks) for name in looks[-1]}


def power_mode(root: str | Path = "/") -> str:
    """Return the device's power mode: a Jetson's by `nvpmodel`, a PC's platform profile; empty where there is none."""
    base = Path(root)
    found = re.search(r"pmode:0*(\d+)", _text(base / "var/lib/nvpmodel/status"))
    if found:
        names = dict(
            re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", _text(base / "etc/nvpmodel.conf"))
        )
        return f"nvpmodel {found[1]}" + (f" ({names[found[1]]})" if found[1] in names else "")
    profile = _text(base / "sys/firmware/acpi/platform_profile")
    return f"platform profile {profile}" if profile else ""
