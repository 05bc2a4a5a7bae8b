from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgekit.cli.devices import devices
from edgekit.devices import load_profile, profile_ids

pytestmark = pytest.mark.device

TREES = Path(__file__).parents[1] / "devices" / "trees"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(devices, arguments, catch_exceptions=False)


def test_list_names_every_profile_and_how_far_it_was_tried() -> None:
    lines = run("list").output.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(profile_ids())
    assert [line.split()[-1] for line in lines[1:]] == [load_profile(each).verified for each in profile_ids()]


def test_list_json_is_the_profiles() -> None:
    listed = json.loads(run("list", "--json").output)
    assert [each["id"] for each in listed] == list(profile_ids())
    assert {"runtimes", "int8", "isa", "ram_mib", "clock_mhz", "static_shapes", "verified"} <= listed[
        0
    ].keys()


def test_show_tells_runtimes_in_order_and_limits() -> None:
    text = run("show", "jetson-orin-nano").output
    assert "TensorrtExecutionProvider -> CUDAExecutionProvider -> CPUExecutionProvider" in text
    assert "opset 17, IR 8 at most" in text
    assert "int8 activations (symmetric), int8 weights" in text
    assert "not on PyPI" in text
    assert "static only" in run("show", "intel-npu").output
    assert "weights of 7 bits" in run("show", "x86-64").output


def test_show_json() -> None:
    shown = json.loads(run("show", "raspberry-pi-5", "--json").output)
    assert (shown["id"], shown["family"], shown["clock_mhz"]) == ("raspberry-pi-5", "raspberry-pi", 2400)


def test_detect_gives_its_reasons() -> None:
    text = run("detect", "--root", str(TREES / "raspberry-pi-5")).output
    assert text.startswith("raspberry-pi-5: ")
    assert "aarch64+asimddp" in text
    assert "raspberrypi,5-model-b" in text


def test_detect_json_has_stable_keys() -> None:
    found = json.loads(run("detect", "--root", str(TREES / "intel-core-ultra"), "--json").output)
    assert list(found) == ["device", "isa", "reasons", "signals", "trail"]
    assert (found["device"], found["isa"]) == ("intel-core-ultra", "x86-64+avx-vnni")
    assert [(each["step"], each["ok"]) for each in found["trail"]] == [
        ("library", True),
        ("library", True),
        ("runtime", None),
    ]


def test_detect_follows_an_accelerator_to_what_is_missing() -> None:
    lines = run("detect", "--root", str(TREES / "npu-without-user-driver")).output.splitlines()
    trail = [line.strip().removeprefix("intel-core-ultra-1: ") for line in lines[1 : lines.index("signals")]]
    assert [line.split()[0] for line in trail] == [
        "PCI",
        "driver",
        "node",
        "this",
        "library",
        "library",
        "runtime",
    ]
    assert trail[4] == "library libze_loader.so.1 is there: /usr/lib/x86_64-linux-gnu/libze_loader.so.1.21.9"
    assert trail[5].startswith(
        "library libze_intel_npu.so.1 is not there: the NPU's user-mode driver, https://"
    )


def test_detect_names_each_signal_apart_from_its_value() -> None:
    text = run("detect", "--root", str(TREES / "intel-core-ultra")).output
    assert "  pci 0000:00:0b.0: 8086:b03e, driver intel_vpu" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "raspbery-pi-4"], 2, "unknown device 'raspbery-pi-4'"),
        (["detect", "--root", "/nowhere"], 5, "no device profile is for this system"),
    ],
)
def test_what_cannot_be_is_one_line_and_its_code(arguments: list[str], code: int, message: str) -> None:
    command = [sys.executable, "-m", "edgekit", "devices", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
