from __future__ import annotations

import json

import click
import pytest
from click.testing import CliRunner

from edgekit.cli.doctor import _page, doctor
from edgekit.doctor import DeviceFinding, Diagnosis, FeatureFinding, RuntimeFinding, StateFinding
from edgekit.trail import Step

pytestmark = pytest.mark.device


def runtime(name: str, **told: object) -> RuntimeFinding:
    found = {
        "version": "",
        "providers": (),
        "problem": "",
        "missing": False,
        "lacks": (),
        "gives": f"runs {name}'s artifacts",
        "preferred": True,
        "command": "",
    }
    return RuntimeFinding(name, **{**found, **told})  # type: ignore[arg-type]


LITERT = runtime("litert", problem="not installed", missing=True, command="pip install 'x[tflite]'")
ORT = runtime(
    "onnxruntime",
    version="onnxruntime 1.31.1",
    providers=("CPUExecutionProvider",),
    lacks=("TensorrtExecutionProvider",),
)
OPENVINO = runtime("openvino", problem="it was killed by SIGSEGV while it was imported", preferred=False)


def diagnosis(*runtimes: RuntimeFinding, device: str = "raspberry-pi-4") -> Diagnosis:
    return Diagnosis(
        edgekit="0.1.0",
        python="3.11.2",
        system="Linux 6.6, glibc 2.36",
        device=DeviceFinding(
            device,
            "Raspberry Pi 4",
            "aarch64",
            "fixture",
            ("it says so",),
            {"arch": "aarch64"},
            ("hot",),
            (Step("library", "libze.so is not there", ok=False), Step("runtime", "x sees NPU", ok=True)),
        ),
        runtimes=runtimes,
        features=(FeatureFinding("agent", "signed reports", ("urllib3",), "pip install 'x[agent]'"),),
        state=StateFinding("/var/lib/edgekit", exists=False, writable=False, free_mib=12),
    )


def test_the_page_says_what_is_missing_and_the_command_that_gives_it() -> None:
    page = click.unstyle("\n".join(_page(diagnosis(LITERT, ORT, OPENVINO))))
    assert "raspberry-pi-4: Raspberry Pi 4, aarch64 (profile verified: fixture)" in page
    assert "because it says so" in page
    assert "signals: arch aarch64" in page
    assert "note: hot" in page
    assert "  - library libze.so is not there" in page
    assert "  + runtime x sees NPU" in page
    assert "litert: not installed" in page
    assert "runs litert's artifacts; raspberry-pi-4 lists it: pip install 'x[tflite]'" in page
    assert "onnxruntime: onnxruntime 1.31.1 on CPUExecutionProvider; raspberry-pi-4 lists it" in page
    assert "without TensorrtExecutionProvider, which raspberry-pi-4 wants" in page
    assert "! openvino: installed but broken: it was killed by SIGSEGV while it was imported" in page
    assert "runs openvino's artifacts: nothing is published for this system" in page
    assert "agent: urllib3 missing" in page
    assert "signed reports: pip install 'x[agent]'" in page
    assert "not made yet, NOT writable for this user, 12 MiB free" in page


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (diagnosis(LITERT, ORT, OPENVINO), "Bundles run here in onnxruntime."),
        (diagnosis(LITERT), "No bundle can run here: no runtime works. One of the commands above gives one."),
        (
            diagnosis(runtime("litert"), runtime("onnxruntime"), runtime("openvino")),
            "Bundles run here in litert, onnxruntime and openvino.",
        ),
        (
            diagnosis(LITERT, runtime("openvino", preferred=False)),
            "Bundles run here in openvino, but raspberry-pi-4 lists none of these.",
        ),
        (diagnosis(runtime("openvino", preferred=False), device=""), "Bundles run here in openvino."),
    ],
)
def test_the_page_ends_with_whether_a_bundle_can_run(found: Diagnosis, verdict: str) -> None:
    assert list(_page(found))[-1] == verdict


def test_doctor_prints_one_page_and_json(tmp_path: object) -> None:
    done = CliRunner().invoke(doctor, ["--state-dir", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert len(done.output.splitlines()) < 50
    done = CliRunner().invoke(doctor, ["--json", "--state-dir", str(tmp_path)], catch_exceptions=False)
    found = json.loads(done.output)
    assert list(found) == ["edgekit", "python", "system", "device", "runtimes", "features", "state"]
    assert [each["name"] for each in found["runtimes"]] == ["litert", "onnxruntime", "openvino"]
    assert found["state"]["folder"] == str(tmp_path)
