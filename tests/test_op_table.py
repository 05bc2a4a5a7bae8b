"""Where the time goes: the runtimes' own profilers, and the table that is made of what they tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import UnavailableError
from edgekit.measure import Job, measure
from edgekit.op_table import OpTable, tabulate, time_ops
from edgekit.profiling import Probes, profile_bundle
from edgekit.runtimes import OpTime, SessionOptions, get_runtime
from edgekit.runtimes.base import typical_ops
from tests.runtimes.bundles import write_tiny
from tests.runtimes.cases import golden, runtime_or_skip, tiny

pytestmark = pytest.mark.device


def quiet(_phase: str, _share: float) -> None:
    pass


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_real_profiler_tells_the_operators(name: str) -> None:
    runtime = runtime_or_skip(name)
    images, _ = golden()
    found = time_ops(
        runtime, tiny(name), SessionOptions(threads=1), {"image": images[:1]}, seconds=0.2, top=3, tell=quiet
    )
    assert found.calls >= 30
    assert 3 <= found.operators <= 30
    assert len(found.rows) == 3
    assert {row.unit for row in found.rows} == {"CPU"}
    assert any("onv" in row.kind for row in found.rows) or any(
        "Gemm" in row.kind or "MatMul" in row.kind or "FullyConnected" in row.kind for row in found.rows
    )
    assert [row.us for row in found.rows] == sorted((row.us for row in found.rows), reverse=True)
    assert found.rows[-1].cumulative == pytest.approx(sum(row.share for row in found.rows))
    assert (found.fallbacks, found.fallback_share) == (0, 0.0)
    assert found.total_us / 1e3 < 2 * found.profiled_p50_ms
    assert found.cost == pytest.approx(found.profiled_p50_ms / found.plain_p50_ms - 1)


def test_the_profiler_of_onnx_runtime_leaves_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_or_skip("onnxruntime")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    images, _ = golden()
    profiler = runtime.profile_ops(tiny("onnxruntime"), SessionOptions(threads=1))
    assert list(tmp_path.iterdir())
    profiler.session.run({"image": images[:1]})
    assert profiler.finish(1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["litert", "null"])
def test_a_runtime_without_a_profiler_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnavailableError, match=f"{name} cannot tell the time of single operators"):
        get_runtime(name).profile_ops(tiny("litert"), SessionOptions())


def test_it_is_refused_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_tiny(tmp_path / "tiny")

    def never(*_: object) -> Any:
        pytest.fail("something was measured")

    monkeypatch.setattr("edgekit.profiling.run_job", never)
    with pytest.raises(UnavailableError, match=r"null cannot tell .* it runs none.*Leave --ops out"):
        profile_bundle(bundle, runtimes=["null"], probes=Probes(top_ops=5))


def test_one_that_cannot_leaves_the_others_their_tables(tmp_path: Path) -> None:
    runtime_or_skip("onnxruntime")
    report = profile_bundle(
        write_tiny(tmp_path / "tiny"),
        runtimes=["null", "onnxruntime"],
        threads=[1],
        seconds=0.1,
        probes=Probes(top_ops=2),
    )
    without, with_ops = report.measurements
    assert isinstance(without.ops, UnavailableError)
    assert isinstance(with_ops.ops, OpTable)
    assert without.as_json()["ops"] == {
        "error": "null cannot tell the time of single operators: it runs none"
    }
    assert len(with_ops.as_json()["ops"]["rows"]) == 2


def test_what_runs_elsewhere_than_planned_is_a_fallback() -> None:
    times = [
        OpTime("a", "Conv", "", "TensorrtExecutionProvider", 60.0),
        OpTime("b", "NonMaxSuppression", "", "CPUExecutionProvider", 30.0),
        OpTime("c", "Relu", "", "CUDAExecutionProvider", 10.0),
    ]
    rows, fallbacks, share, total = tabulate(times, "TensorrtExecutionProvider", 2)
    assert [(row.name, row.unit, row.fallback) for row in rows] == [("a", "GPU", False), ("b", "CPU", True)]
    assert (fallbacks, total) == (2, 100.0)
    assert share == pytest.approx(0.4)
    assert [row.cumulative for row in rows] == pytest.approx([0.6, 0.9])


@pytest.mark.parametrize(
    ("place", "wanted", "fallback"),
    [
        ("CPU", "", False),
        ("NPU.0", "NPU", False),
        ("CPU", "NPU", True),
        ("NPU", "AUTO:NPU,CPU", False),
        ("CPU", "AUTO:NPU,CPU", True),
        ("GPU.0", "", True),
    ],
)
def test_places(place: str, wanted: str, fallback: bool) -> None:
    rows, *_ = tabulate([OpTime("a", "Conv", "", place, 1.0)], wanted, 5)
    assert rows[0].fallback is fallback


def test_operators_without_any_time_share_nothing() -> None:
    rows, _, _, total = tabulate([OpTime("a", "Add", "", "CPU", 0.0)], "", 5)
    assert (rows[0].share, rows[0].cumulative, total) == (0.0, 0.0, 0.0)


def test_a_call_that_was_held_up_moves_nothing() -> None:
    calls = [[OpTime("a", "Conv", "", "CPU", us)] for us in (10.0, 11.0, 9.0, 10.0, 9000.0, 10.0, 11.0, 9.0)]
    assert typical_ops(calls)[0].us == pytest.approx(10.25)
    assert typical_ops([[OpTime("a", "If", "", "CPU", 1.0), OpTime("a", "If", "", "CPU", 2.0)]])[0].us == 3.0


def node(name: str, ts: float, dur: float, kind: str = "Relu") -> dict[str, Any]:
    arguments = {"op_name": kind, "provider": "CPUExecutionProvider"}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": arguments}


def run(ts: float) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": 100, "args": {}}


def test_a_trace_counts_the_last_calls_and_charges_a_loop_with_its_own_time() -> None:
    pytest.importorskip("onnxruntime", reason="needs edgekit-deploy[onnx]")
    from edgekit.runtimes.onnxruntime import traced

    events = [
        run(0), node("conv", 1, 50),  # the warm-up
        run(100), node("loop", 110, 40, "Loop"), node("body", 112, 10), node("body", 125, 20), node("conv", 150, 6),
        run(200), node("loop", 210, 40, "Loop"), node("body", 212, 10), node("body", 225, 20), node("conv", 250, 8),
        {"cat": "Node", "name": "conv_fence_before", "ts": 149, "dur": 1, "args": {"op_name": "Relu"}},
    ]  # fmt: skip
    found = {each.name: each.us for each in traced(events, 2)}
    assert found == {"loop": 10.0, "body": 30.0, "conv": 7.0}
    assert traced([run(0)], 1) == ()
    assert traced([], 1) == ()


@pytest.mark.parametrize("name", ["litert", "onnxruntime", "openvino"])
def test_settings_and_compiling_are_told_in_one_vocabulary(tmp_path: Path, name: str) -> None:
    runtime_or_skip(name)
    files = write_tiny(tmp_path / "tiny").model_files(
        {"litert": "tflite-fp32", "onnxruntime": "onnx-fp32", "openvino": "openvino-fp32"}[name]
    )
    sample = measure(Job(name, SessionOptions(threads=1), files, "real", 1, 0.05), quiet)
    thread_settings = [value for key, value in sample.settings.items() if "num_threads" in key.lower()]
    assert thread_settings[0] == "1"
    assert sample.cache == "none"
    if name == "onnxruntime":
        assert sample.compile_ms is None
    else:
        assert sample.compile_ms is not None
        assert 0 < sample.compile_ms <= sample.load_ms


def test_what_was_compiled_is_kept_and_found_again(tmp_path: Path) -> None:
    runtime_or_skip("openvino")
    files = write_tiny(tmp_path / "tiny").model_files("openvino-fp32")
    options = SessionOptions(threads=1, extra={"CACHE_DIR": str(tmp_path / "cache")})
    job = Job("openvino", options, files, "real", 1, 0.05)
    assert [measure(job, quiet).cache for _ in range(2)] == ["miss", "hit"]
