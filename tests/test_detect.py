from __future__ import annotations

import json
import os
import platform
import re
import shutil
import struct
from pathlib import Path

import msgspec
import pytest

from edgekit.detect import PciDevice, Signals, detect, host_isa, isa_name, read_signals, recognise
from edgekit.devices import load_profile, profile_ids
from edgekit.errors import UnavailableError

pytestmark = pytest.mark.device

TREES = Path(__file__).parent / "devices" / "trees"
PROFILES = tuple(load_profile(each) for each in profile_ids())


#: Profiles to name by hand: on such a system the generic one is found, and narrowed by what the CPU has.
BY_NAME = {"x86-64-avx2", "x86-64-avx512-vnni"}


@pytest.mark.parametrize("profile_id", sorted({*profile_ids()} - {*BY_NAME, "ncs2"}))
def test_every_profile_is_recognised_on_its_recorded_system(profile_id: str) -> None:
    assert detect(str(TREES / profile_id)).profile_id == profile_id


@pytest.mark.parametrize("profile_id", sorted(BY_NAME))
def test_the_generic_profile_becomes_what_the_named_one_says(profile_id: str) -> None:
    found, named = detect(str(TREES / profile_id)), load_profile(profile_id)
    assert found.profile_id == "x86-64"
    assert found.profile().int8 == named.int8
    assert found.profile().isa == named.isa
    assert found.profile().runtimes == named.runtimes


@pytest.mark.parametrize("tree", ["ncs2", "raspberry-pi-4"])
def test_a_withdrawn_accelerator_is_seen_and_not_used(tree: str) -> None:
    signals = read_signals(str(TREES / tree), PROFILES)
    detection = recognise(msgspec.structs.replace(signals, usb=("03e7:2485",)), PROFILES)
    assert detection.profile_id == {"ncs2": "x86-64"}.get(tree, tree)
    assert "ncs2: USB device 03e7:2485, but it is not used: OpenVINO dropped" in detection.reasons[0]
    assert detection.signals["usb"] == "03e7:2485"
    assert bool(detect(str(TREES / tree)).signals.get("usb")) == (tree == "ncs2")


@pytest.mark.parametrize(
    ("tree", "profile_id", "said"),
    [
        (
            "npu-without-driver",
            "x86-64",
            "8086:643e at 0000:00:0b.0, but its driver intel_vpu is not bound (got none; ",
        ),
        ("npu-without-node", "x86-64", "8086:ad1d at 0000:00:0b.0, but there is no node under /dev/accel"),
        ("npu-held-by-another-driver", "x86-64", "not bound (got vfio-pci; "),
        ("other-vendors-accel-node", "x86-64", "no known board or accelerator"),
        ("old-x86", "x86-64", "no known board or accelerator"),
        ("container-without-device-tree", "generic-aarch64", "no known board or accelerator"),
        ("unknown-arm-board", "generic-aarch64", "model 'Acme Edge Box 7'"),
        (
            "pi-container-with-cpuinfo-model",
            "raspberry-pi-4",
            "the model is 'Raspberry Pi 4 Model B Rev 1.1'",
        ),
        ("pi-4-32-bit-userland", "raspberry-pi-4", "the userland is 32-bit"),
        ("jetson-container-without-device-tree", "jetson", "says L4T 36.4.3"),
        ("jetson-nano", "jetson-nano", "the device tree says nvidia,jetson-nano"),
        ("jetson", "jetson", "says L4T 35.4.1"),
        ("raspberry-pi", "raspberry-pi", "the model is 'Raspberry Pi 6 Model B Rev 1.0'"),
        ("npu-without-user-driver", "intel-core-ultra-1", "node /dev/accel/accel0 is there"),
        ("intel-n100", "intel-n100", "the CPU is 'Intel(R) N100'"),
        ("xavier-under-jetpack-4", "generic-aarch64", "L4T 32.7.1, older than 35"),
    ],
)
def test_no_device_is_claimed_that_was_not_seen(tree: str, profile_id: str, said: str) -> None:
    detection = detect(str(TREES / tree))
    assert detection.profile_id == profile_id
    assert said in " | ".join(detection.reasons)


@pytest.mark.parametrize(
    ("tree", "isa"),
    [
        ("raspberry-pi-4", "aarch64"),
        ("raspberry-pi-5", "aarch64+asimddp"),
        ("jetson-orin-nano", "aarch64+asimddp"),
        ("jetson", "aarch64"),
        ("intel-core-ultra", "x86-64+avx-vnni"),
        ("x86-64", "x86-64+avx512-vnni"),
        ("old-x86", "x86-64"),
        ("intel-n100", "x86-64+avx-vnni"),
        ("x86-64-avx2", "x86-64+avx2"),
        ("jetson-thor", "aarch64+i8mm"),
        ("kria", "aarch64"),
        ("pi-4-32-bit-userland", "armv7l"),
    ],
)
def test_the_instruction_set_is_read_from_cpuinfo(tree: str, isa: str) -> None:
    detection = detect(str(TREES / tree))
    assert isa_name(detection.arch, detection.isa) == isa
    assert host_isa(str(TREES / tree)) == isa


def test_a_profile_claims_no_feature_that_its_recorded_system_lacks() -> None:
    for profile in PROFILES:
        assert set(profile.isa) <= set(detect(str(TREES / profile.id)).isa), profile.id


def test_detection_narrows_the_profile_to_the_real_cpu() -> None:
    assert not detect(str(TREES / "x86-64")).profile().int8.reduce_range
    assert detect(str(TREES / "old-x86")).profile().int8.reduce_range
    assert detect(str(TREES / "raspberry-pi-5")).profile().isa == ("neon", "asimdhp", "asimddp")


def test_the_trail_leads_from_the_bus_to_the_node() -> None:
    detection = detect(str(TREES / "intel-core-ultra"))
    assert [reason.removeprefix("intel-core-ultra: ") for reason in detection.reasons] == [
        "PCI device 8086:b03e at 0000:00:0b.0",
        "driver intel_vpu is bound",
        "node /dev/accel/accel0 is there",
        detection.reasons[-1].removeprefix("intel-core-ultra: "),
    ]
    assert re.search(r"this user may open it \([-rw]+ \S+:\S+\)$", detection.reasons[-1])
    assert detection.signals["pci 0000:00:0b.0"] == "8086:b03e, driver intel_vpu, node /dev/accel/accel0"
    json.dumps(detection.signals)


def test_a_node_that_this_user_may_not_open_is_said() -> None:
    npu = PciDevice("0000:00:0b.0", "8086:7d1d", "intel_vpu", ("/dev/accel/accel0",), usable=False)
    detection = recognise(Signals(arch="x86-64", bits=64, pci=(npu,)), PROFILES)
    assert detection.profile_id == "intel-core-ultra-1"
    assert "this user may not open it" in detection.reasons[-1]


@pytest.mark.parametrize(
    ("access", "way"),
    [
        ("crw-rw---- root:render", "sudo usermod -aG render $USER, then log in again"),
        ("crw------- root:root", "a udev rule must give it to a group"),
        ("crw-rw---- root:root", "a udev rule must give it to a group"),
        ("crw------- root:render", "a udev rule must give it to a group"),
    ],
)
def test_the_way_in_follows_from_the_nodes_mode_and_owner(access: str, way: str) -> None:
    npu = PciDevice("0000:00:0b.0", "8086:7d1d", "intel_vpu", ("/dev/accel/accel0",), access=access)
    said = recognise(Signals(arch="x86-64", bits=64, pci=(npu,)), PROFILES).reasons[-1]
    assert f"may not open it ({access}): {way}" in said


def test_an_owner_is_called_as_that_system_calls_it(tmp_path: Path) -> None:
    shutil.copytree(TREES / "intel-core-ultra-1", tmp_path / "root")
    node = tmp_path / "root/dev/accel/accel0"
    node.chmod(0o660)
    (tmp_path / "root/etc").mkdir()
    (tmp_path / "root/etc/passwd").write_text(
        f"x:x:{os.getuid()}9:0::/:\nnpu-owner:x:{os.getuid()}:0::/:/bin/sh\n"
    )
    (tmp_path / "root/etc/group").write_text(f"broken line\nrender:x:{node.stat().st_gid}:\n")
    (npu,) = read_signals(str(tmp_path / "root"), PROFILES).pci
    assert npu.access == "-rw-rw---- npu-owner:render"


def test_a_driver_that_is_not_bound_is_loaded_or_is_not(tmp_path: Path) -> None:
    shutil.copytree(TREES / "npu-without-driver", tmp_path / "root")
    assert "its module is not loaded: modprobe intel_vpu" in detect(str(tmp_path / "root")).reasons[0]
    (tmp_path / "root/sys/module/intel_vpu").mkdir(parents=True)
    assert "(got none; its module is loaded)" in detect(str(tmp_path / "root")).reasons[0]


def test_of_two_accelerators_the_one_whose_trail_is_whole_counts() -> None:
    dead = PciDevice("0000:00:0b.0", "8086:7d1d")
    live = PciDevice("0000:00:0c.0", "8086:643e", "intel_vpu", ("/dev/accel/accel0",), usable=True)
    detection = recognise(Signals(arch="x86-64", bits=64, pci=(dead, live)), PROFILES)
    assert detection.profile_id == "intel-core-ultra-2"
    assert "8086:643e" in detection.reasons[0]


def test_the_slowest_core_decides_what_every_core_can_do(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        "Features\t: fp asimd asimddp i8mm\nCPU architecture: 8\n\nFeatures\t: fp asimd asimddp\nCPU architecture: 8\n"
    )
    assert read_signals(str(tmp_path), PROFILES).isa == ("neon", "asimddp")


def test_an_empty_root_is_an_error_and_no_guess(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"architecture unknown.*--device"):
        detect(str(tmp_path))


def test_a_32_bit_kernel_has_no_profile_and_the_way_out_is_named() -> None:
    with pytest.raises(UnavailableError, match=r"armv7l.*install a 64-bit OS"):
        detect(str(TREES / "32-bit-kernel"))


def test_this_machine_is_recognised() -> None:
    detection = detect()
    machine = {"x86_64": "x86-64", "aarch64": "aarch64"}[platform.machine()]
    assert load_profile(detection.profile_id).arch == machine
    assert detection.signals["userland_bits"] == str(struct.calcsize("P") * 8)
    assert host_isa().startswith(machine)


@pytest.mark.parametrize(
    ("arch", "features", "name"),
    [
        ("x86-64", ("avx2", "avx512", "avx512-vnni", "amx-int8"), "x86-64+amx-int8"),
        ("x86-64", ("avx2", "avx-vnni", "avx512-vnni"), "x86-64+avx512-vnni"),
        ("x86-64", ("avx2", "avx512"), "x86-64+avx512"),
        ("x86-64", ("avx2",), "x86-64+avx2"),
        ("aarch64", ("neon", "asimddp", "i8mm"), "aarch64+i8mm"),
        ("riscv64", ("v",), "riscv64"),
    ],
)
def test_an_instruction_set_is_named_by_its_strongest_integer_feature(
    arch: str, features: tuple[str, ...], name: str
) -> None:
    assert isa_name(arch, features) == name
