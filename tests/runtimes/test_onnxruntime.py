from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import UnavailableError, UsageError
from edgekit.process import python_command
from edgekit.runtimes import SessionOptions
from edgekit.runtimes.onnxruntime import OnnxRuntime, provider_options, session_entries
from tests.runtimes.cases import golden, open_tiny, runtime_or_skip, tiny

pytestmark = pytest.mark.device

CPU = "CPUExecutionProvider"


def settings_of(session: Any) -> Any:
    return session._native.get_session_options()


def test_defaults_suit_a_device() -> None:
    settings = settings_of(open_tiny("onnxruntime", SessionOptions(threads=2)))
    assert settings.intra_op_num_threads == 2
    assert settings.inter_op_num_threads == 1
    assert settings.execution_mode.name == "ORT_SEQUENTIAL"
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert settings.get_session_config_entry("session.inter_op.allow_spinning") == "0"


def test_an_option_with_a_dot_reaches_the_session() -> None:
    extra = {"session.intra_op.allow_spinning": True, "session.set_denormal_as_zero": 1}
    settings = settings_of(open_tiny("onnxruntime", SessionOptions(extra=extra)))
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert settings.get_session_config_entry("session.set_denormal_as_zero") == "1"


def test_provider_options_go_to_their_provider_as_text() -> None:
    extra: dict[str, str | int | float | bool] = {
        "trt_fp16_enable": True,
        "trt_engine_cache_path": "/var/cache",
        "trt_max_workspace_size": 1 << 30,
        "cuda_cudnn_conv_algo_search": "HEURISTIC",
        "cuda_use_tf32": False,
        "session.intra_op.allow_spinning": "1",
    }
    assert provider_options("TensorrtExecutionProvider", extra) == {
        "trt_fp16_enable": "1",
        "trt_engine_cache_path": "/var/cache",
        "trt_max_workspace_size": "1073741824",
    }
    assert provider_options("CUDAExecutionProvider", extra) == {
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }
    assert provider_options(CPU, extra) == {}


def test_entries_are_the_quiet_defaults_and_what_was_given() -> None:
    quiet = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
    assert session_entries({}) == quiet
    assert session_entries({"trt_fp16_enable": True, "cuda_use_tf32": 1}) == quiet
    assert session_entries({"ep.context_enable": True}) == {**quiet, "ep.context_enable": "1"}
    with pytest.raises(UsageError, match="no option 'threads'"):
        session_entries({"threads": 2})


def test_placement_tells_the_nodes() -> None:
    placement = open_tiny("onnxruntime").placement
    assert list(placement) == [CPU]
    assert re.fullmatch(r"(\d+) of \1 nodes|all nodes", placement[CPU])


def test_an_absent_tensorrt_is_named_with_what_is_there() -> None:
    runtime = runtime_or_skip("onnxruntime")
    if "TensorrtExecutionProvider" in runtime.providers():
        pytest.skip("this machine has TensorRT")
    wanted = ("TensorrtExecutionProvider", "CUDAExecutionProvider", CPU)
    with pytest.raises(UnavailableError, match="TensorrtExecutionProvider is not available") as caught:
        runtime.load(tiny("onnxruntime"), SessionOptions(providers=wanted))
    assert CPU in str(caught.value)
    session = runtime.load(tiny("onnxruntime"), SessionOptions(providers=wanted, allow_fallback=True))
    assert list(session.placement) == [CPU]


def test_the_provider_that_sends_data_away_is_never_offered() -> None:
    runtime_or_skip("onnxruntime")
    assert "AzureExecutionProvider" not in OnnxRuntime().providers()


def test_nothing_is_logged_for_a_good_model_nor_for_a_bad_one(tmp_path: Path) -> None:
    runtime_or_skip("onnxruntime")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(tiny("onnxruntime").path.read_bytes()[:700])
    script = (
        "from pathlib import Path\nimport sys\n"
        "from edgekit.errors import InvalidFileError\n"
        "from tests.runtimes.cases import open_tiny, runtime_or_skip, tiny\n"
        "from edgekit.runtimes import SessionOptions\n"
        "open_tiny('onnxruntime')\n"
        "try: runtime_or_skip('onnxruntime').load(tiny('onnxruntime', path=Path(sys.argv[1])), SessionOptions())\n"
        "except InvalidFileError: print('refused')\n"
    )
    done = subprocess.run(
        python_command("-c", script, str(bad)),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.split() == ["refused"]
    assert "[E:onnxruntime:" not in done.stderr


def test_a_batch_runs_in_one_call() -> None:
    images, expected = golden()
    np.testing.assert_allclose(
        open_tiny("onnxruntime").run({"image": images})["probabilities"], expected, atol=1e-5
    )
