"""May a bundle go onto a device? A table of devices and bundles, and every reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgekit.deploy.checks import check_device, check_packages, check_room, is_made_for, room_needed
from edgekit.deploy.packages import Packages, device_extras
from edgekit.deploy.survey import Services, Survey
from edgekit.detect import detect
from edgekit.devices import load_profile
from edgekit.errors import UnavailableError
from edgekit.manifest import FileEntry, Manifest, Plan
from tests.bundle_samples import golden, manifest

TREES = Path(__file__).parents[1] / "devices" / "trees"
KEPT = frozenset({"tflite-fp32", "onnx-fp16"})


def survey(tree: str = "raspberry-pi-4", **changes: Any) -> Survey:
    found = Survey(
        detection=detect(str(TREES / tree)),
        python="3.11.2",
        implementation="CPython",
        venv=True,
        bits=64,
        machine="aarch64",
        glibc="2.36",
        user="pi",
        home="/home/pi",
        root="/home/pi/e",
        state="/home/pi/s",
        free_bytes=1 << 33,
        ram_mib=2000,
        environments=(),
        current="",
        services=Services(),
    )
    return msgspec.structs.replace(found, **changes)


def made_for(target: str) -> Manifest:
    """Return a manifest of files of 1 MB each."""
    made = manifest(golden(), plan=Plan(target, "tflite-fp32", "litert"))
    names = [
        "golden.npz",
        "reference.json",
        *(file for each in made.artifacts.values() for file in each.files),
    ]
    return msgspec.structs.replace(made, files={name: FileEntry("0" * 64, 1_000_000) for name in names})


@pytest.mark.parametrize(
    ("target", "tree", "fits"),
    [
        ("raspberry-pi-4", "raspberry-pi-4", True),
        ("raspberry-pi", "raspberry-pi-4", True),
        ("raspberry-pi-5", "raspberry-pi-4", False),
        ("raspberry-pi-4", "raspberry-pi", False),
        ("raspberry-pi-4", "unknown-arm-board", False),
        ("jetson", "jetson-orin-nano", True),
        ("jetson", "raspberry-pi-5", False),
        ("x86-64", "x86-64-avx2", True),
        ("x86-64-avx2", "x86-64-avx512-vnni", True),
        ("x86-64-avx512-vnni", "x86-64-avx2", False),
        ("intel-n100", "x86-64-avx2", False),
    ],
)
def test_what_suits_which_device(target: str, tree: str, fits: bool) -> None:
    assert is_made_for(load_profile(target), detect(str(TREES / tree))) is fits


def test_a_device_that_passes() -> None:
    checks, plan = check_device(survey(), made_for("raspberry-pi-4"), KEPT, device=None, runtime=None)
    assert [each for each in checks if not each.passed] == []
    assert plan is not None
    assert (plan.runtime, plan.artifact) == ("litert", "tflite-fp32")


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"python": "3.9.2"}, "python", "CPython 3.9.2; 3.10 or newer is needed"),
        ({"python": "3.9.2", "venv": False}, "python", "without venv"),
        ({"venv": False}, "python", "without venv"),
        ({"implementation": "PyPy"}, "python", "PyPy 3.11.2"),
        ({"python": "?"}, "python", "3.10 or newer"),
        ({"glibc": ""}, "C library", "not for musl"),
        ({"bits": 32}, "instruction set", "32-bit aarch64"),
        ({"ram_mib": 40}, "memory", "40 MiB free, 79 MiB needed"),
    ],
)
def test_each_reason(changes: dict[str, Any], name: str, said: str) -> None:
    checks, _ = check_device(survey(**changes), made_for("raspberry-pi-4"), KEPT, device=None, runtime=None)
    (failed,) = [each for each in checks if not each.passed]
    assert failed.name == name
    assert said in failed.said


def test_a_32_bit_userland_is_refused() -> None:
    checks, _ = check_device(
        survey("pi-4-32-bit-userland", bits=32), made_for("raspberry-pi"), KEPT, device=None, runtime=None
    )
    assert [each.name for each in checks if not each.passed] == ["instruction set"]


def test_a_name_that_is_no_folder() -> None:
    evil = msgspec.structs.replace(made_for("raspberry-pi-4"), name="../../etc")
    checks, _ = check_device(survey(), evil, KEPT, device=None, runtime=None)
    assert [each.name for each in checks if not each.passed] == ["name"]


def test_a_profile_given_by_hand_counts() -> None:
    given = made_for("raspberry-pi-5")
    checks, plan = check_device(survey(), given, KEPT, device="raspberry-pi-5", runtime=None)
    assert all(each.passed for each in checks)
    assert plan is not None
    assert plan.device == "raspberry-pi-5"
    assert "given by hand; detected as raspberry-pi-4" in checks[0].said


PACKAGES = Packages((Path("a.whl"),), "key", 40_000_000, 120_000_000, ("another version is taken",))


def test_the_wheels() -> None:
    assert "40.0 MB to send; another version is taken" in check_packages(PACKAGES, None, survey()).said
    there = survey(environments=("key",))
    assert "installed there already" in check_packages(PACKAGES, None, there).said
    none = check_packages(None, UnavailableError("there is no wheel of x for y"), survey())
    assert (none.passed, none.said) == (False, "there is no wheel of x for y")


def test_the_room() -> None:
    made = made_for("raspberry-pi-4")
    plan = made.plan
    need = room_needed(PACKAGES, made, plan, survey())
    assert need == int(1.1 * (160_000_000 + 2 * 4_000_000)), (
        "the slice: without the other artifact's two files"
    )
    assert check_room(survey(), need).passed
    short = check_room(survey(free_bytes=need - 1), need)
    assert not short.passed
    assert "185 MB needed. Make room, or give another folder with --to" in short.said
    assert room_needed(PACKAGES, made, plan, survey(environments=("key",))) == 8_800_000


def test_extras_follow_plan_and_preprocessing() -> None:
    plain = made_for("raspberry-pi-4")
    assert device_extras("litert", plain) == ("tflite", "daemon", "agent")
    assert device_extras("null", plain) == ("daemon", "agent")
    pictures = msgspec.structs.replace(plain, preprocess=({"kind": "image"}, {"kind": "text"}))
    assert device_extras("onnxruntime", pictures) == ("onnx", "daemon", "agent", "image", "text")
