from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path

import pytest

from edgekit.choose import EXTRAS
from edgekit.devices import FORMATS
from edgekit.doctor import FEATURES, diagnose, probe_runtime

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.device

ROOT = Path(__file__).parents[1]


def child(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def test_a_crash_of_the_native_library_is_a_finding() -> None:
    found = probe_runtime("openvino", command=child("import os; os.kill(os.getpid(), 11)"))
    assert found.problem == "broken: killed by SIGSEGV while it was loaded"
    assert (found.version, found.providers) == ("", ())
    assert found.command == "pip install 'edgekit-deploy[openvino]'"


def test_a_library_that_ends_the_process_is_a_finding_with_its_last_words() -> None:
    found = probe_runtime("litert", command=child("import sys; sys.exit('libfoo.so: wrong ELF class')"))
    assert found.problem == "broken: ended with exit code 1 while it was loaded: libfoo.so: wrong ELF class"


def test_a_library_that_hangs_is_a_finding() -> None:
    found = probe_runtime("litert", command=child("import time; time.sleep(60)"), timeout_s=0.2)
    assert found.problem == "gave no answer within 0.2 s"


def test_noise_before_the_answer_is_passed_over() -> None:
    script = """print("INFO: hello"); print('{"version": "litert 1", "providers": ["CPU"]}')"""
    found = probe_runtime("litert", command=child(script))
    assert (found.version, found.providers, found.problem, found.command) == ("litert 1", ("CPU",), "", "")


@pytest.mark.parametrize("output", ["", "hello", "[1, 2]"])
def test_an_answer_that_is_none_is_a_finding(output: str) -> None:
    assert probe_runtime("litert", command=child(f"print({output!r})")).problem.startswith("broken: ")


def test_a_runtime_that_is_missing_or_broken_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino/__init__.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").write_text(
        "raise ImportError('libonnxruntime.so.1: no such file')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = {each.name: each for each in diagnose(state_dir=str(tmp_path)).runtimes}
    assert "SIGSEGV" in found["openvino"].problem
    assert "libonnxruntime.so.1: no such file" in found["onnxruntime"].problem
    assert found["onnxruntime"].command == "pip install 'edgekit-deploy[onnx]'"
    assert "SIGSEGV" not in found["litert"].problem


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
