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
    assert list(found) == ["device", "isa", "reasons", "signals"]
    assert (found["device"], found["isa"]) == ("intel-core-ultra", "x86-64+avx-vnni")


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
