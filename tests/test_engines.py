"""Engine caches: kept under a key of everything that an engine depends on, and never taken for another device."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgekit import local
from edgekit.devices import load_profile
from edgekit.engines import compiles, engine_key, engine_options, shape_profiles, system_versions
from edgekit.manifest import Plan
from edgekit.runtimes import ModelFiles, SessionOptions
from edgekit.runtimes.onnxruntime import provider_options
from edgekit.tensors import TensorSpec
from tests.runtimes.bundles import write_tiny

pytestmark = pytest.mark.device

TREES = Path(__file__).parent / "devices" / "trees"
TRT = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
IMAGE = TensorSpec("image", "float32", (-1, 28, 28, 1), "NHWC")
FIXED = TensorSpec("mask", "float32", (1, 8))
SHA = "ab" * 32


def files(*inputs: TensorSpec, **names: str) -> ModelFiles:
    return ModelFiles(Path("model.onnx"), inputs or (IMAGE,), (), names)


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """A recorded Orin Nano under JetPack 6.2."""
    root = tmp_path / "orin"
    shutil.copytree(TREES / "jetson-orin-nano", root)
    libraries = root / "usr/lib/aarch64-linux-gnu"
    libraries.mkdir(parents=True, exist_ok=True)
    for name in ("libnvinfer.so.10", "libnvinfer.so.10.3.0"):
        (libraries / name).touch()
    (root / "usr/local/cuda").mkdir(parents=True, exist_ok=True)
    (root / "usr/local/cuda/version.json").write_text('{"cuda": {"version": "12.6.68"}}')
    return root


def options(
    root: Path, folder: Path, *, runtime: str = "onnxruntime 1.23.0", **extra: bool
) -> dict[str, object]:
    return dict(engine_options(files(), SHA, runtime, TRT, extra, root=str(root), folder=folder))


def test_what_an_engine_depends_on_is_read(orin: Path, tmp_path: Path) -> None:
    assert system_versions(str(orin)) == {
        "sm": "8.7",
        "l4t": "36.4.3",
        "tensorrt": "10.3.0",
        "cuda": "12.6.68",
    }
    assert system_versions(str(tmp_path / "nothing")) == {}
    (orin / "usr/local/cuda/version.json").write_text("[]")
    assert "cuda" not in system_versions(str(orin))


def test_tensorrt_keeps_engine_and_timings_for_shapes_that_are_said(orin: Path, tmp_path: Path) -> None:
    found = options(orin, tmp_path / "engines", trt_fp16_enable=True)
    place = Path(str(found["trt_engine_cache_path"]))
    assert place.is_dir()
    assert place.parent == tmp_path / "engines"
    assert found["trt_timing_cache_path"] == str(place)
    assert found["trt_engine_cache_enable"] is True
    assert found["trt_timing_cache_enable"] is True
    assert found["trt_profile_min_shapes"] == "image:1x28x28x1"
    assert found["trt_profile_opt_shapes"] == "image:1x28x28x1"
    assert found["trt_profile_max_shapes"] == "image:32x28x28x1"


def test_an_upgraded_jetpack_gets_a_new_engine_and_the_old_one_goes(orin: Path, tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    before = Path(str(options(orin, engines)["trt_engine_cache_path"]))
    (before / "engine.plan").write_bytes(b"of TensorRT 10.3")
    assert Path(str(options(orin, engines)["trt_engine_cache_path"])) == before
    assert (before / "engine.plan").exists()
    other = engines / "0123456789abcdef-0123456789abcdef"
    other.mkdir()
    (orin / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 5.0, GCID: 1, BOARD: generic\n")
    after = Path(str(options(orin, engines)["trt_engine_cache_path"]))
    assert after != before
    assert not before.exists()
    assert other.exists(), "another model's engines stay"


@pytest.mark.parametrize("what", ["model", "runtime", "options", "sm", "tensorrt"])
def test_every_part_of_the_key_counts(what: str) -> None:
    system = {"sm": "8.7", "tensorrt": "10.3.0"}
    plain = engine_key(SHA, "onnxruntime 1.23.0", {"trt_fp16_enable": True}, system)
    changed = {
        "model": engine_key("cd" * 32, "onnxruntime 1.23.0", {"trt_fp16_enable": True}, system),
        "runtime": engine_key(SHA, "onnxruntime 1.24.0", {"trt_fp16_enable": True}, system),
        "options": engine_key(SHA, "onnxruntime 1.23.0", {"trt_int8_enable": True}, system),
    }
    other = changed.get(what) or engine_key(
        SHA, "onnxruntime 1.23.0", {"trt_fp16_enable": True}, {**system, what: "other"}
    )
    assert other != plain
    assert (
        engine_key(SHA, "onnxruntime 1.23.0", {"trt_fp16_enable": True}, dict(reversed(system.items())))
        == plain
    )


def test_a_free_axis_behind_the_batch_has_no_profile() -> None:
    assert shape_profiles(files(TensorSpec("ids", "int64", (-1, -1)))) == {}
    assert shape_profiles(files(FIXED)) == {}
    both = shape_profiles(files(IMAGE, FIXED, image="serving_image"))
    assert both["trt_profile_max_shapes"] == "serving_image:32x28x28x1,mask:1x8"


def test_an_npu_keeps_what_was_compiled_and_a_cpu_compiles_nothing(tmp_path: Path) -> None:
    npu = engine_options(files(), SHA, "openvino 2026.4.1", ("NPU", "CPU"), {}, folder=tmp_path / "e")
    assert Path(str(npu["CACHE_DIR"])).is_dir()
    assert list(npu) == ["CACHE_DIR"]
    for providers in (("CPU",), ("CPUExecutionProvider",), (), ("CUDAExecutionProvider",)):
        assert not compiles(providers)
        assert engine_options(files(), SHA, "x", providers, {}, folder=tmp_path / "none") == {}
    assert not (tmp_path / "none").exists()


def test_an_fpga_keeps_what_was_compiled_where_no_reboot_takes_it(tmp_path: Path) -> None:
    providers = ("VitisAIExecutionProvider", "CPUExecutionProvider")
    fpga = engine_options(files(), SHA, "onnxruntime 1.16.0", providers, {}, folder=tmp_path / "e")
    assert (Path(str(fpga["vitisai_cacheDir"])) / str(fpga["vitisai_cacheKey"])).is_dir()
    assert provider_options(providers[0], fpga).keys() == {"cacheDir", "cacheKey"}
    assert provider_options(providers[1], fpga) == {}
    profile = load_profile("kria")
    own = provider_options(providers[0], profile.runtimes[0].options_for("int8"))
    assert own == {"config_file": "/etc/vaip_config.json"}


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert engine_options(files(), SHA, "x", TRT, {}, folder=tmp_path / "file") == {}


def test_a_plan_is_opened_with_its_cache_and_its_own_options_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[SessionOptions] = []

    class Recorder:
        def version(self) -> str:
            return "onnxruntime 1.23.0"

        def load(self, _files: ModelFiles, given: SessionOptions) -> str:
            seen.append(given)
            return "session"

    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr(local, "get_runtime", lambda _name: Recorder())
    bundle = write_tiny(tmp_path / "bundle", ("onnx-fp32",))
    plan = Plan("jetson", "onnx-fp32", "onnxruntime", TRT, 0, {"trt_timing_cache_enable": False})
    assert str(local.open_plan(bundle, plan)) == "session"
    assert str(seen[0].extra["trt_engine_cache_path"]).startswith(str(tmp_path / "state" / "engines"))
    assert seen[0].extra["trt_timing_cache_enable"] is False
    local.open_plan(bundle, Plan("x86-64", "onnx-fp32", "onnxruntime", TRT[-1:]))
    assert seen[1].extra == {}
