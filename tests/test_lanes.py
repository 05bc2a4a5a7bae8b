"""The rules of the lanes: which skips CI allows, and which files a device lane reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import required_but_missing

pytestmark = pytest.mark.device

LANE = """
import pytest
{marker}

def test_passes() -> None:
    pass

def test_lacks_a_runtime() -> None:
    pytest.skip("acme needs edgekit-deploy[openvino]")

def test_is_not_for_root() -> None:
    pytest.skip("root may write everywhere")
"""


@pytest.mark.parametrize(
    ("reason", "may_lack", "missing"),
    [
        ("needs edgekit-deploy[onnx]", "", "onnx"),
        ("needs edgekit-deploy[onnx]", "openvino,onnx", None),
        ("needs edgekit-deploy[tflite-runtime]", "tflite", "tflite-runtime"),
        ("no sshd here: a loopback device needs openssh-server, see .ci/run [sshd]", "", "sshd"),
        ("could not import 'PIL': No module named 'PIL'", "", "image"),
        ("could not import 'PIL': No module named 'PIL'", "image", None),
        ("could not import 'unheard_of': No module named 'unheard_of'", "", "unheard_of"),
        ("root may write everywhere", "", None),
    ],
)
def test_a_skip_names_what_is_missing(reason: str, may_lack: str, missing: str | None) -> None:
    assert required_but_missing(reason, may_lack) == missing


@pytest.fixture
def lane(tmp_path: Path) -> Path:
    tests = tmp_path / "tests"
    tests.mkdir()
    for name in ("__init__.py", "conftest.py", "corpus.py"):
        shutil.copy(Path(__file__).with_name(name), tests)
    (tests / "test_lane.py").write_text(LANE.format(marker="pytestmark = pytest.mark.device"))
    (tests / "test_server.py").write_text("import no_such_server\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    device: x\n")
    return tmp_path


def _closing_line(lane: Path, *arguments: str, **variables: str) -> str:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("CI", "EDGEKIT_MAY_LACK")
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command,
        cwd=lane,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.stdout.splitlines()[-1]


def test_a_skip_is_a_skip_at_home(lane: Path) -> None:
    assert _closing_line(lane, "-m", "device").startswith("1 passed, 2 skipped")


def test_a_required_skip_fails_in_ci(lane: Path) -> None:
    assert _closing_line(lane, "-m", "device", CI="true").startswith("1 failed, 1 passed, 1 skipped")


def test_a_lane_may_lack_what_it_names(lane: Path) -> None:
    closing = _closing_line(lane, "-m", "device", CI="true", EDGEKIT_MAY_LACK="openvino")
    assert closing.startswith("1 passed, 2 skipped")


def test_a_module_skipped_as_a_whole_fails_in_ci(lane: Path) -> None:
    (lane / "tests" / "test_more.py").write_text(
        "import pytest\npytestmark = pytest.mark.device\npytest.importorskip('onnxruntime_of_acme')\n"
    )
    assert "1 error" in _closing_line(lane, "-m", "device", CI="true")


def test_other_lanes_read_every_file(lane: Path) -> None:
    assert "1 error" in _closing_line(lane)
