from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import InvalidFileError, UnavailableError, UsageError
from edgekit.process import python_command
from edgekit.runtimes import SessionOptions
from edgekit.runtimes import openvino as room
from edgekit.runtimes.openvino import compile_options, present_devices
from tests.runtimes.cases import ARTIFACTS, golden, open_tiny, runtime_or_skip, tiny

pytestmark = pytest.mark.device


def property_of(session: Any, name: str) -> Any:
    return session._request.get_compiled_model().get_property(name)


def test_the_cpu_is_set_for_latency_on_the_threads_asked_for() -> None:
    session = open_tiny("openvino", SessionOptions(threads=1))
    assert str(property_of(session, "PERFORMANCE_HINT")).endswith("LATENCY")
    assert property_of(session, "INFERENCE_NUM_THREADS") == 1
    assert session.placement == {"CPU": "all nodes"}


def test_a_property_reaches_the_device() -> None:
    session = open_tiny("openvino", SessionOptions(extra={"INFERENCE_PRECISION_HINT": "f32"}))
    assert "float32" in str(property_of(session, "INFERENCE_PRECISION_HINT"))


def test_a_property_that_the_device_does_not_know_is_no_silent_matter() -> None:
    runtime = runtime_or_skip("openvino")
    with pytest.raises(InvalidFileError, match="WARP_FACTOR"):
        runtime.load(tiny("openvino"), SessionOptions(extra={"WARP_FACTOR": "9"}))


def test_threads_are_for_the_cpu_only() -> None:
    four = SessionOptions(threads=4, extra={"INFERENCE_PRECISION_HINT": "f32"})
    assert compile_options("CPU", four) == {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": 4,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    assert "INFERENCE_NUM_THREADS" not in compile_options("NPU", four)
    assert compile_options("CPU", SessionOptions(extra={"PERFORMANCE_HINT": "THROUGHPUT"})) == {
        "PERFORMANCE_HINT": "THROUGHPUT"
    }
    with pytest.raises(UsageError, match="no option 'precision'"):
        compile_options("CPU", SessionOptions(extra={"precision": "f32"}))


@pytest.mark.parametrize(
    ("wanted", "available", "more"),
    [
        (["NPU", "CPU"], ["CPU"], []),
        (["GPU", "CPU"], ["CPU", "GPU.0", "GPU.1"], ["GPU"]),
        (["AUTO:NPU,CPU"], ["CPU"], []),
        (["AUTO:NPU,CPU"], ["CPU", "NPU"], ["AUTO:NPU,CPU"]),
        (["HETERO:GPU,CPU"], ["CPU", "GPU.0"], ["HETERO:GPU,CPU"]),
        (["AUTO"], ["CPU"], []),
        (["GP"], ["CPU", "GPU.0"], []),
    ],
)
def test_devices_present(wanted: list[str], available: list[str], more: list[str]) -> None:
    assert present_devices(wanted, available) == (*available, *more)


def test_an_absent_npu_is_an_error_or_a_fallback_that_was_allowed() -> None:
    runtime = runtime_or_skip("openvino")
    if "NPU" in runtime.providers():
        pytest.skip("this machine has an NPU")
    with pytest.raises(UnavailableError, match="NPU is not available to openvino"):
        runtime.load(tiny("openvino"), SessionOptions(providers=("NPU", "CPU")))
    allowed = SessionOptions(providers=("NPU", "CPU"), allow_fallback=True)
    assert runtime.load(tiny("openvino"), allowed).placement == {"CPU": "all nodes"}


def test_a_device_for_static_shapes_gets_one_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime_or_skip("openvino")
    monkeypatch.setattr(room, "STATIC", ("CPU",))  # the CPU compiles static shapes just as well
    session = open_tiny("openvino", SessionOptions(extra={"INFERENCE_PRECISION_HINT": "f32"}))
    assert session.inputs[0].shape == (1, 8, 8, 1)
    images, expected = golden()
    got = session.run({"image": images[:1]})["probabilities"]
    np.testing.assert_allclose(got, expected[:1], atol=1e-5)
    with pytest.raises(UsageError, match=r"got \[2, 8, 8, 1\], expected \[1, 8, 8, 1\]"):
        session.run({"image": images[:2]})


@pytest.mark.parametrize("loss", ["missing", "cut"])
def test_weights_that_do_not_fit_are_named(loss: str, tmp_path: Path) -> None:
    runtime = runtime_or_skip("openvino")
    path = tmp_path / "tiny.xml"
    path.write_bytes((ARTIFACTS / "tiny.xml").read_bytes())
    if loss == "cut":
        (tmp_path / "tiny.bin").write_bytes((ARTIFACTS / "tiny.bin").read_bytes()[:100])
    with pytest.raises(InvalidFileError, match=r"tiny\.xml"):
        runtime.load(tiny("openvino", path=path), SessionOptions())


def test_outputs_are_views_until_the_next_run() -> None:
    images, expected = golden()
    session = open_tiny("openvino", SessionOptions(extra={"INFERENCE_PRECISION_HINT": "f32"}))
    assert not session.fresh_outputs
    copied = session.run({"image": images[:1]})["probabilities"].copy()
    session.run({"image": images[1:2]})
    np.testing.assert_allclose(copied, expected[:1], atol=1e-5)


def test_the_callers_array_is_neither_kept_nor_changed() -> None:
    images, expected = golden()
    session = open_tiny("openvino", SessionOptions(extra={"INFERENCE_PRECISION_HINT": "f32"}))
    given = images[:1].copy()
    before = session.run({"image": given})["probabilities"].copy()
    given[:] = 0
    np.testing.assert_allclose(before, expected[:1], atol=1e-5)
    after = session.run({"image": images[:1]})["probabilities"]
    np.testing.assert_allclose(after, expected[:1], atol=1e-5)


def test_onnx_files_are_read_too() -> None:
    images, expected = golden()
    exact = SessionOptions(extra={"INFERENCE_PRECISION_HINT": "f32"})
    session = runtime_or_skip("openvino").load(tiny("openvino", path=ARTIFACTS / "tiny.onnx"), exact)
    np.testing.assert_allclose(session.run({"image": images})["probabilities"], expected, atol=1e-5)


def test_the_library_that_reports_usage_is_never_imported() -> None:
    runtime_or_skip("openvino")
    script = (
        "import sys\nfrom tests.runtimes.cases import open_tiny\nopen_tiny('openvino')\n"
        "print([m for m in sys.modules if 'openvino_telemetry' in m])\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "print(telemetry_utils.tm.__name__)"
    )
    done = subprocess.run(
        python_command("-c", script),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == ["[]", "openvino.tools.ovc.telemetry_stub"]
