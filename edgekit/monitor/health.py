"""The device's heat and its brakes, read from sysfs under a root, so that a recorded tree does as well."""

from __future__ import annotations

from pathlib import Path

import msgspec

__all__ = ["DeviceHealth", "read_health", "zone_celsius"]

#: What a thermal zone can mean, in °C: drivers report odd numbers for sensors that are off.
_PLAUSIBLE_C = (-60.0, 200.0)
#: Raspberry Pi firmware: under-voltage, frequency capped, throttled, soft temperature limit, each now.
#: Bits 16 to 19 say the same since boot, which tells nothing about a window.
_THROTTLED_NOW = 0b1111


class DeviceHealth(msgspec.Struct, frozen=True):
    """One look at the device.

    Attributes:
        temperature_c: Of the hottest zone; None where there is none.
        throttled: Whether the firmware slows the processor down at the moment, for heat or for want of power.
    """

    temperature_c: float | None = None
    throttled: bool = False


def read_health(root: str | Path = "/") -> DeviceHealth:
    """Read temperature and throttling below `root`; what is not there or makes no sense is left out."""
    sys = Path(root) / "sys"
    zones = [zone_celsius(path) for path in sorted(sys.glob("class/thermal/thermal_zone*/temp"))]
    hot = [zone for zone in zones if zone is not None]
    flags = [
        _throttle_bits(path) for path in sorted(sys.glob("devices/platform/soc/*firmware/get_throttled"))
    ]
    return DeviceHealth(max(hot, default=None), any(bits & _THROTTLED_NOW for bits in flags))


def zone_celsius(path: Path) -> float | None:
    """Return a zone's temperature; the kernel writes millidegrees."""
    try:
        value = int(path.read_text(encoding="ascii")) / 1000.0
    except (OSError, ValueError):
        return None
    return value if _PLAUSIBLE_C[0] <= value <= _PLAUSIBLE_C[1] else None


def _throttle_bits(path: Path) -> int:
    """Return the firmware's bits, which it writes in hexadecimal."""
    try:
        return int(path.read_text(encoding="ascii"), 16)
    except (OSError, ValueError):
        return 0
