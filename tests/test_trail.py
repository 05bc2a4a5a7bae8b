from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.devices import load_profile, profile_ids
from edgekit.probe import Finding
from edgekit.trail import Step, follow

pytestmark = pytest.mark.device

TREES = Path(__file__).parent / "devices" / "trees"


def nobody(name: str) -> Finding:
    raise AssertionError(f"{name} was asked")


@pytest.mark.parametrize(
    "tree", ["intel-core-ultra", "intel-core-ultra-1", "intel-core-ultra-2", "jetson-orin-nano"]
)
def test_libraries_are_found_under_the_root_and_no_runtime_of_this_machine_is_asked(tree: str) -> None:
    steps = follow(load_profile(tree), str(TREES / tree), find=nobody)
    assert [step.ok for step in steps] == [True, True, None]
    assert all("is there: /usr/" in step.said for step in steps[:2])
    assert "is not the running system" in steps[-1].said


def test_a_library_that_is_missing_says_what_gives_it() -> None:
    steps = follow(load_profile("kria"), str(TREES / "kria"), find=nobody)
    assert steps[0] == Step(
        "library", "libvart-runner.so is not there: the Vitis AI Runtime, from AMD's board image", ok=False
    )


@pytest.mark.parametrize("device", ["raspberry-pi-4", "x86-64", "rk3588", "generic-aarch64", "intel-n100"])
def test_a_device_without_an_accelerator_has_no_trail(device: str) -> None:
    assert follow(load_profile(device), find=nobody) == ()


def test_libraries_are_listed_where_an_accelerator_is_planned() -> None:
    for profile in map(load_profile, profile_ids()):
        planned = any(set(each.providers) - {"CPU", "CPUExecutionProvider"} for each in profile.runtimes)
        assert bool(profile.libraries) == (planned and not profile.withdrawn), profile.id


@pytest.mark.parametrize(
    ("found", "ok", "said"),
    [
        (Finding("openvino 2026.4.1", ("CPU", "NPU")), True, "openvino 2026.4.1 sees NPU"),
        (Finding("openvino 2026.4.1", ("CPU", "NPU.0")), True, "openvino 2026.4.1 sees NPU"),
        (Finding("openvino 2026.4.1", ("CPU",)), False, "openvino 2026.4.1 does not see NPU, only CPU"),
        (Finding(problem="…", missing=True), False, "openvino is not installed: see `edgekit doctor`"),
        (
            Finding(problem="it was killed by SIGSEGV while it was imported"),
            False,
            "openvino is installed but broken (it was killed by SIGSEGV while it was imported): see `edgekit doctor`",
        ),
    ],
)
def test_the_trail_ends_with_whether_the_runtime_sees_it(found: Finding, ok: bool, said: str) -> None:
    assert follow(load_profile("intel-npu"), find=lambda _name: found)[-1] == Step("runtime", said, ok)


def test_each_provider_wanted_is_a_step() -> None:
    cuda = Finding("onnxruntime 1.31.1", ("CUDAExecutionProvider", "CPUExecutionProvider"))
    steps = follow(load_profile("jetson"), find=lambda _name: cuda)
    assert [(step.ok, "Tensorrt" in step.said) for step in steps if step.step == "runtime"] == [
        (False, True),
        (True, False),
    ]


def test_the_loaders_own_folders_count_on_the_running_system(tmp_path: Path) -> None:
    (tmp_path / "libvart-runner.so.3").touch()
    kria = load_profile("kria")
    there = {"LD_LIBRARY_PATH": f":{tmp_path}"}
    steps = follow(kria, find=lambda _name: Finding("x", ()), environ=there)
    assert steps[0] == Step("library", f"libvart-runner.so is there: {tmp_path}/libvart-runner.so.3", ok=True)
    assert not follow(kria, str(TREES / "kria"), find=nobody, environ=there)[0].ok
