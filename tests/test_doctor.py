from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path

import pytest

from edgekit.choose import EXTRAS, installed_runtimes
from edgekit.devices import FORMATS, load_profile
from edgekit.doctor import FEATURES, diagnose, runtime_finding
from edgekit.probe import Finding
from tests.broken_runtimes import put_broken

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.device

ROOT = Path(__file__).parents[1]


def test_a_runtime_that_is_missing_or_broken_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_broken(tmp_path, "segfault", "openvino")
    put_broken(tmp_path, "import error", "onnxruntime")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = {each.name: each for each in diagnose(state_dir=str(tmp_path)).runtimes}
    assert "SIGSEGV" in found["openvino"].problem
    assert (found["openvino"].version, found["openvino"].providers) == ("", ())
    assert "libcudart.so.13: cannot open" in found["onnxruntime"].problem
    assert found["onnxruntime"].command == "pip install --force-reinstall 'edgekit-deploy[onnx]'"
    assert not found["onnxruntime"].missing
    assert "SIGSEGV" not in found["litert"].problem
    # what the page found holds for everything else
    monkeypatch.setattr("edgekit.probe_run.ask", lambda *_: pytest.fail("tried again"))
    assert "SIGSEGV" in installed_runtimes_problem("openvino")


def installed_runtimes_problem(name: str) -> str:
    found = installed_runtimes()
    assert name not in found
    return found.problems[name].why


def test_the_page_asks_again_whatever_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(name: str, _timeout_s: float) -> Finding:
        asked.append(name)
        return Finding(f"{name} 1", ("CPU",))

    monkeypatch.setattr("edgekit.probe_run.ask", ask)
    for _ in range(2):
        found = diagnose()
    assert asked == [each.name for each in found.runtimes if not each.missing] * 2
    assert asked


def test_what_is_missing_has_its_command() -> None:
    missing = Finding(problem="the runtime litert is not installed. Run: pip …", missing=True)
    found = runtime_finding("litert", missing, load_profile("raspberry-pi-4"), "aarch64")
    assert (found.problem, found.preferred) == ("not installed", True)
    assert found.command == "pip install 'edgekit-deploy[tflite]'"
    assert runtime_finding("litert", missing, None, "armv7l").command == ""


def test_a_provider_that_the_device_wants_and_the_runtime_lacks_is_told() -> None:
    ort = Finding("onnxruntime 1.31.1", ("CPUExecutionProvider",))
    found = runtime_finding("onnxruntime", ort, load_profile("jetson-orin-nano"), "aarch64")
    assert found.lacks == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert found.command == ""
    npus = Finding("openvino 2026.4.1", ("CPU", "NPU.0", "NPU.1"))
    assert runtime_finding("openvino", npus, load_profile("intel-npu"), "x86-64").lacks == ()
    assert runtime_finding("openvino", npus).lacks == ()


def test_the_trail_to_an_accelerator_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.probe_run.ask", lambda name, _timeout_s: Finding(f"{name} 1", ("CPU",)))
    tree = ROOT / "tests" / "devices" / "trees" / "npu-without-user-driver"
    found = diagnose(root=str(tree)).as_json()["device"]
    assert found["id"] == "intel-core-ultra-1"
    assert [(step["step"], step["ok"]) for step in found["trail"]] == [
        ("library", True),
        ("library", False),
        ("runtime", None),
    ]


def test_the_page_is_made_where_no_device_can_be_told(tmp_path: Path) -> None:
    found = diagnose(root=str(tmp_path), state_dir=str(tmp_path))
    assert found.device.id == ""
    assert "architecture unknown" in found.device.reasons[0]
    assert not any(each.preferred for each in found.runtimes)


def test_doctor_makes_no_state_folder(tmp_path: Path) -> None:
    found = diagnose(state_dir=str(tmp_path / "a" / "b")).state
    assert (found.exists, found.writable) == (False, True)
    assert found.free_mib > 0
    assert list(tmp_path.iterdir()) == []


def test_a_state_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not diagnose(state_dir=str(tmp_path / "file" / "state")).state.writable
    if os.geteuid() == 0:
        return  # root may write anywhere
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert not diagnose(state_dir=str(tmp_path)).state.writable


def test_the_extras_are_those_of_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) | {"null"} == set(FORMATS)
    assert set(EXTRAS.values()) <= declared.keys()
    for extra, (_, needs) in FEATURES.items():
        listed = {re.split(r"[\[<>=;! ]", each)[0] for each in declared[extra]}
        assert set(needs) <= listed, extra
