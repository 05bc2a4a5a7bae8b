from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from edgekit.cli.doctor import _page, doctor
from edgekit.doctor import DeviceFinding, Diagnosis, FeatureFinding, RuntimeFinding, StateFinding

pytestmark = pytest.mark.device

LACKING = Diagnosis(
    edgekit="0.1.0",
    python="3.11.2",
    system="Linux 6.6, glibc 2.36",
    device=DeviceFinding(
        "raspberry-pi-4", "Raspberry Pi 4", "aarch64", "fixture", ("it says so",), {}, ("hot",)
    ),
    runtimes=(
        RuntimeFinding(
            "litert", "", (), "not installed", "runs tflite artifacts", True, "pip install 'x[tflite]'"
        ),
        RuntimeFinding(
            "onnxruntime", "onnxruntime 1.31.1", ("CPUExecutionProvider",), "", "runs onnx", True, ""
        ),
    ),
    features=(FeatureFinding("agent", "signed reports", ("urllib3",), "pip install 'x[agent]'"),),
    state=StateFinding("/var/lib/edgekit", exists=False, writable=False, free_mib=12),
)


def test_the_page_says_what_is_missing_and_the_command_that_gives_it() -> None:
    page = "\n".join(_page(LACKING))
    assert "raspberry-pi-4: Raspberry Pi 4, aarch64 (profile tried on: fixture)" in page
    assert "because it says so" in page
    assert "litert: not installed" in page
    assert "runs tflite artifacts; raspberry-pi-4 uses it: pip install 'x[tflite]'" in page
    assert "onnxruntime: onnxruntime 1.31.1 on CPUExecutionProvider" in page
    assert "agent: urllib3 missing" in page
    assert "signed reports: pip install 'x[agent]'" in page
    assert "not made yet, NOT writable for this user, 12 MiB free" in page


def test_doctor_prints_one_page_and_json(tmp_path: object) -> None:
    done = CliRunner().invoke(doctor, ["--state-dir", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert len(done.output.splitlines()) < 50
    done = CliRunner().invoke(doctor, ["--json", "--state-dir", str(tmp_path)], catch_exceptions=False)
    found = json.loads(done.output)
    assert list(found) == ["edgekit", "python", "system", "device", "runtimes", "features", "state"]
    assert [each["name"] for each in found["runtimes"]] == ["litert", "onnxruntime", "openvino"]
    assert found["state"]["folder"] == str(tmp_path)
