"""Heat, clocks, brakes and power, read from trees as devices have them."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from edgekit.sensors import (
    Sensors,
    absent,
    energy_j,
    heat_of,
    power_mode,
    read_sensors,
    throttled_between,
    vcgencmd_bits,
)

pytestmark = pytest.mark.device

CPU = "sys/devices/system/cpu"
HWMON = "sys/class/hwmon"


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write files under a root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture
def pi(tmp_path: Path) -> Path:
    return tree(tmp_path / "pi", {
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": "61345",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005",
        f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "1500000",
        f"{CPU}/cpu1/cpufreq/scaling_cur_freq": "600000",
    })  # fmt: skip


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    return tree(tmp_path / "orin", {
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": "48500",
        "sys/class/thermal/thermal_zone1/type": "tj-thermal",
        "sys/class/thermal/thermal_zone1/temp": "51000",
        "sys/class/thermal/thermal_zone2/type": "gpu-thermal",
        "sys/class/thermal/thermal_zone2/temp": "-256000",  # switched off
        f"{HWMON}/hwmon1/name": "ina3221",
        f"{HWMON}/hwmon1/in1_label": "VDD_IN",
        f"{HWMON}/hwmon1/in1_input": "5000",
        f"{HWMON}/hwmon1/curr1_input": "1200",
        f"{HWMON}/hwmon1/in2_label": "VDD_CPU_GPU_CV",
        f"{HWMON}/hwmon1/in2_input": "4990",
        f"{HWMON}/hwmon1/curr2_input": "400",
        f"{HWMON}/hwmon1/in3_label": "NC",
        f"{HWMON}/hwmon1/in3_input": "0",
        f"{HWMON}/hwmon1/curr3_input": "0",
        f"{HWMON}/hwmon2/name": "soctherm_oc",
        f"{HWMON}/hwmon2/oc3_event_cnt": "4",
        "var/lib/nvpmodel/status": "pmode:0001 fmode:quiet",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >",
    })  # fmt: skip


@pytest.fixture
def intel(tmp_path: Path) -> Path:
    files = {
        "sys/class/powercap/intel-rapl:0/name": "package-0",
        "sys/class/powercap/intel-rapl:0/energy_uj": "262143000000",
        "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850",
        "sys/class/powercap/intel-rapl:0:0/name": "core",
        "sys/class/powercap/intel-rapl:0:0/energy_uj": "1000",
        "sys/class/powercap/intel-rapl:1/name": "psys",
        "sys/class/powercap/intel-rapl:1/energy_uj": "5",
        "sys/firmware/acpi/platform_profile": "balanced",
    }
    for core in (0, 1):
        files[f"{CPU}/cpu{core}/topology/physical_package_id"] = "0"
        files[f"{CPU}/cpu{core}/thermal_throttle/core_throttle_count"] = "2"
        files[f"{CPU}/cpu{core}/thermal_throttle/package_throttle_count"] = "3"
    return tree(tmp_path / "intel", files)


def test_a_raspberry_pi(pi: Path) -> None:
    seen = read_sensors(pi)
    assert seen.zones_c == {"cpu-thermal": 61.345}
    assert seen.clocks_mhz == (1500.0, 600.0)
    assert seen.firmware == 0x50005
    assert throttled_between([seen]) == (
        "the firmware reports under-voltage",
        "the firmware reports throttling",
    )
    assert absent(seen).keys() == {"power"}


def test_bits_since_boot_count_only_where_they_are_new(pi: Path) -> None:
    file = pi / "sys/devices/platform/soc/soc:firmware/get_throttled"
    file.write_text("50000\n")  # once, long ago
    before = read_sensors(pi)
    assert throttled_between([before, before]) == ()
    file.write_text("d0000\n")  # between two looks
    assert throttled_between([before, read_sensors(pi)]) == (
        "the firmware reports the soft temperature limit",
    )


def test_a_newer_kernel_of_the_pi_has_an_alarm_in_place_of_the_bits(tmp_path: Path) -> None:
    root = tree(tmp_path, {f"{HWMON}/hwmon0/name": "rpi_volt", f"{HWMON}/hwmon0/in0_lcrit_alarm": "1"})
    assert throttled_between([read_sensors(root)]) == ("the firmware reports under-voltage",)


@pytest.mark.parametrize(
    ("script", "bits"),
    [
        ("echo throttled=0x50000", 0x50000),
        ("echo VCHI initialization failed; exit 255", None),
        ("echo", None),
    ],
)
def test_the_pis_own_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, bits: int | None
) -> None:
    command = tmp_path / "vcgencmd"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert vcgencmd_bits() == bits


def test_a_jetson(orin: Path) -> None:
    seen = read_sensors(orin)
    assert seen.zones_c == {"cpu-thermal": 48.5, "tj-thermal": 51.0}
    assert seen.hottest_c == 51.0
    assert seen.rails_mw == {"VDD_IN": 6000.0, "VDD_CPU_GPU_CV": pytest.approx(1996.0)}
    assert seen.module_mw == 6000.0
    assert power_mode(orin) == "nvpmodel 1 (25W)"
    (orin / f"{HWMON}/hwmon2/oc3_event_cnt").write_text("6\n")
    assert throttled_between([seen, read_sensors(orin)]) == ("2 × over-current event oc3",)


def test_a_jetson_under_jetpack_4(tmp_path: Path) -> None:
    chip = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    seen = read_sensors(
        tree(tmp_path, {f"{chip}/rail_name_0": "POM_5V_IN", f"{chip}/in_power0_input": "3120"})
    )
    assert seen.rails_mw == {"POM_5V_IN": 3120.0}
    assert seen.module_mw == 3120.0


def test_an_intel_pc_counts_a_package_once(intel: Path) -> None:
    seen = read_sensors(intel)
    assert seen.counts == {"thermal throttling of cores": 4, "thermal throttling of the package": 3}
    assert seen.energy_uj == {"package-0": 262143000000}  # neither its cores nor psys again
    assert power_mode(intel) == "platform profile balanced"
    later = msgspec.structs.replace(seen, energy_uj={"package-0": 1_671_150})  # it began anew
    assert energy_j([seen, later]) == pytest.approx(2.0)
    assert heat_of([seen, later], 4.0).package_w == pytest.approx(0.5)


def test_an_energy_counter_that_is_for_root_alone_is_said_to_be(
    intel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = intel / "sys/class/powercap/intel-rapl:0/energy_uj"
    whole = Path.read_text

    def as_a_user(path: Path, *args: object, **words: object) -> str:
        if path == secret:  # tests may run as root, who may read anything
            raise PermissionError(13, "Permission denied")
        return whole(path, *args, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", as_a_user)
    seen = read_sensors(intel)
    assert seen.energy_uj == {}
    assert "may not read /sys/class/powercap/intel-rapl:0/energy_uj" in absent(seen)["power"]
    assert energy_j([seen, seen]) is None


def test_a_machine_without_sensors_says_so(tmp_path: Path) -> None:
    seen = read_sensors(tmp_path)
    assert seen == Sensors()
    assert absent(seen).keys() == {"temperature", "clock", "throttling", "power"}
    found = heat_of([seen, seen], 1.0)
    assert (found.start_c, found.clock_min_mhz, found.module_mw, found.package_w) == (None,) * 4
    assert found.throttled == ()
    assert power_mode(tmp_path) == ""


def test_a_run_is_summed_up(orin: Path) -> None:
    looks = []
    for millidegrees, current in (("50000", "1000"), ("70000", "3000"), ("60000", "2000")):
        (orin / "sys/class/thermal/thermal_zone1/temp").write_text(millidegrees)
        (orin / f"{HWMON}/hwmon1/curr1_input").write_text(current)
        looks.append(read_sensors(orin))
    found = heat_of(looks, 2.0)
    assert (found.start_c, found.end_c, found.max_c) == (50.0, 60.0, 70.0)
    assert found.module_mw == pytest.approx(10_000.0)
    assert found.rails_mw["VDD_IN"] == pytest.approx(10_000.0)


@pytest.mark.parametrize("text", ["", "hot", "9" * 40, "0x", "-"])
def test_nonsense_is_left_out(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, {
        "sys/class/thermal/thermal_zone0/temp": text,
        "sys/devices/platform/soc/soc:firmware/get_throttled": text,
        f"{CPU}/cpu0/cpufreq/scaling_cur_freq": text,
        f"{HWMON}/hwmon0/oc1_event_cnt": text,
        "sys/class/powercap/intel-rapl:0/name": "package-0",
        "sys/class/powercap/intel-rapl:0/max_energy_range_uj": text,
    })  # fmt: skip
    assert read_sensors(root) == Sensors()
