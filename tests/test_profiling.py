from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from edgekit.bundle import Bundle
from edgekit.candidates import candidates, default_threads
from edgekit.detect import detect
from edgekit.errors import UnavailableError, UsageError
from edgekit.manifest import Plan
from edgekit.measure import Job, Sample, measure
from edgekit.profile_identity import governors, identify, place_of
from edgekit.profiling import Measurement, Probes, profile_bundle
from edgekit.runtimes import SessionOptions
from edgekit.tensors import TensorSpec
from tests.bundle_samples import artifact, write
from tests.runtimes.bundles import write_tiny
from tests.runtimes.cases import runtime_or_skip

pytestmark = pytest.mark.device


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write(tmp_path / "bundle")


def job(bundle: Bundle, seconds: float = 0.05, batch: int = 1) -> Job:
    files = bundle.model_files("tflite-fp32")
    return Job("null", SessionOptions(), files, "real", batch, seconds)


def test_a_measurement_has_every_phase(bundle: Bundle) -> None:
    told: list[tuple[str, float]] = []
    sample = measure(job(bundle, 0.6), lambda phase, share: told.append((phase, share)))
    assert sample.version.startswith("null")
    assert sample.placement
    assert sample.latency.n >= 5
    assert min(sample.load_ms, sample.first_ms, sample.latency.min) > 0
    assert sample.warm_up_runs > 0
    assert sample.steady_s >= 0.6
    assert sample.throughput_per_s == pytest.approx(sample.latency.n / sample.steady_s)
    assert 0 < sample.before_mib <= sample.peak_mib
    assert {phase for phase, _ in told} == {"warm-up", "measuring"}
    assert all(share >= 0 for _, share in told)


def test_throughput_counts_every_sample_of_a_batch(bundle: Bundle) -> None:
    sample = measure(job(bundle, batch=100), lambda _phase, _share: None)
    assert sample.throughput_per_s == pytest.approx(100 * sample.latency.n / sample.steady_s)


def test_a_slow_model_is_still_called_five_times(bundle: Bundle) -> None:
    sample = measure(job(bundle, seconds=1e-9), lambda _phase, _share: None)
    assert sample.latency.n >= 5
    assert sample.stability.verdict == "unknown"


def test_each_candidate_is_measured_in_a_child(bundle: Bundle) -> None:
    seen: list[tuple[int, int]] = []
    report = profile_bundle(
        bundle,
        runtimes=["null"],
        threads=[1, 2],
        batches=[1, 4],
        seconds=0.3,
        watch=lambda _what, done, total: seen.append((done, total)),
    )
    assert [(each.candidate.plan.threads, each.candidate.batch) for each in report.measurements] == [
        (1, 1), (1, 4), (2, 1), (2, 4),
    ]  # fmt: skip
    assert all(each.sample and each.sample.latency.n >= 5 for each in report.measurements)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {400}
    assert report.identity.digest == bundle.digest
    assert report.identity.device == detect().profile_id
    assert report.identity.cores == os.cpu_count()


@pytest.mark.parametrize("name", ["litert", "onnxruntime", "openvino"])
def test_a_real_runtime_tells_its_version_and_where_it_ran(tmp_path: Path, name: str) -> None:
    runtime = runtime_or_skip(name)
    report = profile_bundle(write_tiny(tmp_path / "tiny"), runtimes=[name], threads=[1], seconds=0.2)
    (measurement,) = report.measurements
    assert measurement.sample is not None
    assert measurement.sample.version == runtime.version()
    assert measurement.sample.placement
    assert measurement.sample.import_ms > 0
    assert measurement.sample.before_mib < measurement.sample.loaded_mib


def test_the_json_has_the_same_keys_after_an_error(bundle: Bundle) -> None:
    plan = Plan("x86-64", "tflite-fp32", "null")
    (candidate,) = candidates(bundle, [plan], [1], [1])
    failed = Measurement(candidate, None, UnavailableError("gone")).as_json()
    done = Measurement(candidate, measure(job(bundle), lambda _phase, _share: None)).as_json()
    assert list(failed) == list(done)
    assert failed["error"] == "gone"
    assert failed["latency_ms"] is None
    assert done["error"] is None
    assert {"runtime", "artifact", "threads", "batch", "load_ms", "first_ms", "warm_up_s", "throughput_per_s",
            "peak_mib", "latency_ms", "stability", "placement", "version"} <= set(done)  # fmt: skip
    assert {
        "percentiles", "refused", "intervals", "n", "min", "mean", "max", "max_at_s", "mad", "cov",
    } == set(done["latency_ms"])  # fmt: skip
    msgspec.json.encode(done)


def test_a_model_that_does_not_load_is_an_error_of_its_kind(bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime", reason="needs edgekit-deploy[onnx]")
    from edgekit.errors import InvalidFileError

    with pytest.raises(InvalidFileError, match=r"artifacts/onnx-fp16/model\.onnx"):
        profile_bundle(bundle, runtimes=["onnxruntime"], threads=[1], seconds=0.1)


def test_a_failure_leaves_the_other_measurements(bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime", reason="needs edgekit-deploy[onnx]")
    report = profile_bundle(bundle, runtimes=["onnxruntime", "null"], threads=[1], seconds=0.1)
    broken, whole = report.measurements
    assert broken.sample is None
    assert "model.onnx" in str(broken.error)
    assert isinstance(whole.sample, Sample)


def test_a_child_that_dies_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launcher = tmp_path / "launcher"
    launcher.write_text("#!/bin/sh\necho 'illegal instruction: sdot' >&2\nkill -SEGV $$\n")
    launcher.chmod(0o755)
    monkeypatch.setenv("EDGEKIT_LAUNCHER", str(launcher))
    with pytest.raises(
        UnavailableError, match=r"ended with signal 11: illegal instruction: sdot.*edgekit doctor"
    ):
        profile_bundle(bundle, runtimes=["null"], threads=[1], seconds=0.1)


def test_what_native_code_prints_does_not_reach_the_answer(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noisy = tmp_path / "site"
    noisy.mkdir()
    (noisy / "sitecustomize.py").write_text(
        "import os, sys, threading, time\n"
        "def speak():\n"
        "    while 'edgekit.golden' not in sys.modules:\n"  # measuring has begun
        "        time.sleep(0.005)\n"
        "    os.write(1, b'INFO: hello')\n"
        "threading.Thread(target=speak, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(noisy))
    report = profile_bundle(bundle, runtimes=["null"], threads=[1], seconds=0.5)
    assert report.measurements[0].sample


def test_a_batch_that_the_artifact_does_not_take_is_refused_before_anything_runs(tmp_path: Path) -> None:
    fixed = (TensorSpec("image", "float32", (1, 4, 4, 1), "NHWC"),)
    made = {"tflite-fp32": artifact("tflite-fp32", inputs=fixed)}
    bundle = write(tmp_path / "fixed", names=("tflite-fp32",), artifacts=made)
    plan = Plan("x86-64", "tflite-fp32", "null")
    assert len(candidates(bundle, [plan], [1], [1])) == 1
    with pytest.raises(UsageError, match=r"tflite-fp32 takes one batch size only.*--batch 2.*--batch 1"):
        candidates(bundle, [plan], [1], [1, 2])


def test_what_is_asked_for_twice_is_measured_once(bundle: Bundle) -> None:
    plan = Plan("x86-64", "tflite-fp32", "null")
    assert len(candidates(bundle, [plan], [2, 2, 1], [1, 1])) == 2


@pytest.mark.parametrize(
    ("cores", "threads"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4)), (6, (1, 2, 4, 6))]
)
def test_threads_double_up_to_the_cores(cores: int, threads: tuple[int, ...]) -> None:
    assert default_threads(cores) == threads


@pytest.mark.parametrize(
    ("target", "detected", "place"),
    [
        ("raspberry-pi-4", "raspberry-pi-4", "device"),
        ("raspberry-pi", "raspberry-pi-4", "device"),
        ("raspberry-pi-4", "raspberry-pi", "host"),
        ("raspberry-pi-4", "raspberry-pi-5", "host"),
        ("raspberry-pi-4", "x86-64", "host"),
        ("x86-64", "x86-64", "device"),
    ],
)
def test_a_latency_counts_for_the_target_only_where_this_is_the_target(
    target: str, detected: str, place: str
) -> None:
    assert place_of(target, detected) == place


def test_governors_are_read_where_there_are_any(tmp_path: Path) -> None:
    assert governors(tmp_path) == {}
    for core, governor in enumerate(("ondemand", "ondemand", "performance")):
        folder = tmp_path / f"cpu{core}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{governor}\n")
    assert governors(tmp_path) == {"cpu0": "ondemand", "cpu1": "ondemand", "cpu2": "performance"}


def test_the_identity_names_everything_that_a_ratio_depends_on(bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "orin"
    shutil.copytree(Path(__file__).parent / "devices" / "trees" / "jetson-orin-nano", root)
    for name, text in {
        "var/lib/nvpmodel/status": "pmode:0001",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
        "sys/devices/system/cpu/cpu10/cpufreq/scaling_governor": "performance",
        "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor": "schedutil",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    found = identify(bundle, detect(str(root)), 6, str(root))
    assert found.device == "jetson-orin-nano"
    assert found.soc == "nvidia,tegra234"
    assert list(found.governors) == ["cpu0", "cpu2", "cpu10"]
    assert found.governor == "performance, schedutil"
    assert found.power_mode == "nvpmodel 1"
    assert found.system["sm"] == "8.7"
    assert found.system["l4t"]


def test_the_artifact_is_part_of_the_identity(bundle: Bundle) -> None:
    report = profile_bundle(bundle, runtimes=["null"], threads=[1], batches=[3], seconds=0.1)
    row = report.measurements[0].as_json()
    assert row["model"] == {
        "sha256": bundle.manifest.files["artifacts/tflite-fp32/model.tflite"].sha256,
        "precision": "fp32",
        "inputs": {"image": {"dtype": "float32", "shape": [3, 4, 4, 1]}},
    }
    assert {"settings", "options", "providers", "placement", "version", "cache", "compile_ms"} <= set(row)
    assert row["pss_mib"] is None or 0 < row["pss_mib"] <= row["peak_mib"]
    assert sum(each["n"] for each in row["over_time"]) == row["latency_ms"]["n"]


def test_sensors_are_part_of_a_measurement(bundle: Bundle, tmp_path: Path) -> None:
    zone = tmp_path / "root/sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("55000\n")
    sample = measure(
        msgspec.structs.replace(job(bundle), root=str(tmp_path / "root")), lambda _phase, _share: None
    )
    assert sample.heat.zones_c == {"thermal_zone0": 55.0}
    assert "temperature" not in sample.heat.absent
    assert "power" in sample.heat.absent


def test_a_slowed_down_processor_is_the_cause(bundle: Bundle, tmp_path: Path) -> None:
    bits = tmp_path / "root/sys/devices/platform/soc/soc:firmware/get_throttled"
    bits.parent.mkdir(parents=True)
    bits.write_text("4\n")
    slowed = msgspec.structs.replace(job(bundle, 0.3), root=str(tmp_path / "root"))
    sample = measure(slowed, lambda _phase, _share: None)
    assert sample.stability.verdict == "unstable"
    assert "because the firmware reports throttling" in sample.stability.reasons


def test_pauses_and_the_sustained_run_come_after_the_latencies(bundle: Bundle) -> None:
    report = profile_bundle(
        bundle,
        runtimes=["null"],
        batches=[1],
        seconds=0.1,
        probes=Probes(gaps_s=(0.0, 0.01), sustain_s=1.0),
    )
    (measurement,) = report.measurements  # of a sustained run, the plan's own threads alone
    assert measurement.candidate.plan.threads == 0
    assert measurement.sample is not None
    assert [each.gap_s for each in measurement.sample.idle_gaps] == [0.0, 0.01]
    assert measurement.sample.sustained is not None
    assert measurement.sample.sustained.seconds >= 1.0
    assert measurement.sample.steady_s < 0.9


def test_a_long_steady_phase_ends_when_it_has_enough_calls(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.steady.MOST_RUNS", 100)
    sample = measure(job(bundle, seconds=600), lambda _phase, _share: None)
    assert sample.latency.n == 100
    assert sample.steady_s < 60


def test_an_unknown_runtime_or_artifact_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="unknown runtime 'tensorrt'"):
        profile_bundle(bundle, runtimes=["tensorrt"])
    with pytest.raises(UsageError, match="onnx-int4"):
        profile_bundle(bundle, runtimes=["null"], artifact="onnx-int4")
