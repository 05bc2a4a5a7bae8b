from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.monitor.health import DeviceHealth, read_health

pytestmark = pytest.mark.device


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")


def test_a_machine_without_sensors_tells_nothing(tmp_path: Path) -> None:
    assert read_health(tmp_path) == DeviceHealth(None, throttled=False)


def test_the_hottest_zone_counts(tmp_path: Path) -> None:
    for zone, text in enumerate(["48312\n", "61250\n", "nonsense", "", "250000\n", "-274000\n"]):
        put(tmp_path, f"sys/class/thermal/thermal_zone{zone}/temp", text)
    (tmp_path / "sys/class/thermal/thermal_zone9").mkdir()
    (tmp_path / "sys/class/thermal/thermal_zone9/temp").mkdir()
    assert read_health(tmp_path).temperature_c == 61.25


@pytest.mark.parametrize(
    ("text", "expected"), [("-60000", -60.0), ("200000", 200.0), ("-60001", None), ("200001", None)]
)
def test_a_temperature_is_plausible(tmp_path: Path, text: str, expected: float | None) -> None:
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", text)
    assert read_health(tmp_path).temperature_c == expected


@pytest.mark.parametrize(
    ("text", "throttled"),
    [
        ("0\n", False),
        ("1\n", True),
        ("2\n", True),
        ("4\n", True),
        ("8\n", True),
        ("10\n", False),
        ("50000\n", False),  # it was, since boot: says nothing about now
        ("50005\n", True),
        ("0x4\n", True),
        ("", False),
        ("what", False),
    ],
)
def test_the_firmware_says_whether_it_slows_down_now(tmp_path: Path, text: str, throttled: bool) -> None:
    put(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", text)
    assert read_health(str(tmp_path)) == DeviceHealth(None, throttled=throttled)
