from __future__ import annotations

from collections.abc import Collection

import msgspec
import pytest

from edgekit.choose import InstalledRuntime, InstalledRuntimes, Problem, choose, installed_runtimes
from edgekit.devices import load_profile, profile_ids
from edgekit.errors import RefusedError, UnavailableError, UsageError
from edgekit.manifest import Artifact, GateResult, Golden, Manifest, Option, Plan, Recipe, SourceInfo, Verdict
from edgekit.tensors import TensorSpec

pytestmark = pytest.mark.device

LITERT = {"litert": InstalledRuntime("ai-edge-litert 2.3.0", ("CPU",))}
ORT = {"onnxruntime": InstalledRuntime("onnxruntime 1.31.1", ("CPUExecutionProvider",))}
CUDA = {
    "onnxruntime": InstalledRuntime("onnxruntime 1.31.1", ("CUDAExecutionProvider", "CPUExecutionProvider"))
}
TRT = {
    "onnxruntime": InstalledRuntime(
        "onnxruntime 1.31.1", ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    )
}
VITIS = {
    "onnxruntime": InstalledRuntime(
        "onnxruntime 1.16.0", ("VitisAIExecutionProvider", "CPUExecutionProvider")
    )
}
OPENVINO = {"openvino": InstalledRuntime("openvino 2026.4.1", ("CPU",))}
IGPU = {"openvino": InstalledRuntime("openvino 2026.4.1", ("CPU", "GPU", "NPU"))}
NPU = {"openvino": InstalledRuntime("openvino 2026.4.1", ("CPU", "NPU"))}
NULL = {"null": InstalledRuntime("null", ("CPU",))}
NOTHING: dict[str, InstalledRuntime] = {}

RPI = ("tflite-fp32", "tflite-int8-dynamic", "tflite-int8", "onnx-fp32", "onnx-int8")
JETSON = ("onnx-fp32", "onnx-fp16", "onnx-int8")
INTEL = ("openvino-fp32", "openvino-fp16", "openvino-int8")


def artifact(
    name: str, verdict: Verdict = "accepted", *, batch: int = 1, isa: str = "", **made: Option
) -> Artifact:
    form, _, precision = name.partition("-")
    specs = (TensorSpec("image", "float32", (batch, 28, 28, 1)),)
    return Artifact(
        format=form,
        precision=precision,
        path=f"artifacts/{name}/model",
        files=(f"artifacts/{name}/model",),
        inputs=specs,
        outputs=(TensorSpec("output_0", "float32", (batch, 10)),),
        recipe=Recipe(route=("test",), precision=precision, options=made),
        gate=GateResult(verdict, ()),
        isa=isa,
    )


def manifest(*artifacts: Artifact) -> Manifest:
    return Manifest(
        name="digits",
        version=1,
        task="classification",
        source=SourceInfo("keras", "0" * 64),
        inputs=(),
        outputs=(),
        artifacts={f"{each.format}-{each.precision}": each for each in artifacts},
        plan=Plan("raspberry-pi-4", "tflite-int8", "litert"),
        golden=Golden(8, "real"),
        files={},
    )


def bundle(names: Collection[str], **made: Option) -> Manifest:
    return manifest(*(artifact(name, **made) for name in names))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "names", "installed", "chosen", "runtime", "providers"),
    [
        ("raspberry-pi", RPI, None, "tflite-int8", "litert", ("CPU",)),
        ("raspberry-pi-4", RPI, LITERT | ORT, "tflite-int8", "litert", ("CPU",)),
        ("raspberry-pi-4", RPI, ORT, "onnx-int8", "onnxruntime", ("CPUExecutionProvider",)),
        ("raspberry-pi-5", RPI[:2], LITERT, "tflite-int8-dynamic", "litert", ("CPU",)),
        ("raspberry-pi-5", ("tflite-fp16",), LITERT, "tflite-fp16", "litert", ("CPU",)),
        (
            "raspberry-pi-4",
            ("onnx-fp32",),
            LITERT | ORT,
            "onnx-fp32",
            "onnxruntime",
            ("CPUExecutionProvider",),
        ),
        ("generic-aarch64", RPI, LITERT, "tflite-int8", "litert", ("CPU",)),
        ("jetson", JETSON, None, "onnx-fp16", "onnxruntime", TRT["onnxruntime"].providers),
        ("jetson-orin-nano", JETSON[:2], TRT, "onnx-fp16", "onnxruntime", TRT["onnxruntime"].providers),
        ("jetson", JETSON, CUDA, "onnx-fp16", "onnxruntime", CUDA["onnxruntime"].providers),
        ("jetson", JETSON, ORT, "onnx-fp16", "onnxruntime", ("CPUExecutionProvider",)),
        ("intel-npu", INTEL, None, "openvino-int8", "openvino", ("NPU", "CPU")),
        ("intel-core-ultra", INTEL, NPU, "openvino-int8", "openvino", ("NPU", "CPU")),
        ("intel-core-ultra", INTEL[:2], OPENVINO, "openvino-fp16", "openvino", ("CPU",)),
        ("raspberry-pi-zero-2w", RPI, LITERT | ORT, "tflite-int8", "litert", ("CPU",)),
        ("raspberry-pi-3", RPI[:1] + RPI[3:], LITERT | ORT, "tflite-fp32", "litert", ("CPU",)),
        ("raspberry-pi-5", RPI, OPENVINO | ORT, "onnx-int8", "onnxruntime", ("CPUExecutionProvider",)),
        ("rk3588", RPI, LITERT | ORT, "tflite-int8", "litert", ("CPU",)),
        ("rk3588", RPI, None, "tflite-int8", "litert", ("CPU",)),
        ("generic-aarch64", RPI, TRT, "onnx-int8", "onnxruntime", ("CPUExecutionProvider",)),
        ("kria", RPI, VITIS | LITERT, "onnx-fp32", "onnxruntime", VITIS["onnxruntime"].providers),
        ("kria", RPI, None, "onnx-fp32", "onnxruntime", VITIS["onnxruntime"].providers),
        ("kria", RPI, ORT | LITERT, "onnx-fp32", "onnxruntime", ("CPUExecutionProvider",)),
        ("kria", RPI, LITERT, "tflite-int8", "litert", ("CPU",)),
        ("kria", RPI[:3], VITIS | LITERT, "tflite-int8", "litert", ("CPU",)),
        ("jetson-nano", JETSON, None, "onnx-fp16", "onnxruntime", TRT["onnxruntime"].providers),
        ("jetson-xavier-nx", JETSON, TRT, "onnx-fp16", "onnxruntime", TRT["onnxruntime"].providers),
        ("jetson-orin", JETSON, CUDA, "onnx-fp16", "onnxruntime", CUDA["onnxruntime"].providers),
        ("jetson-agx-orin", ("onnx-fp32",), TRT, "onnx-fp32", "onnxruntime", TRT["onnxruntime"].providers),
        ("jetson-thor", JETSON, TRT, "onnx-fp16", "onnxruntime", TRT["onnxruntime"].providers),
        ("jetson-thor", JETSON, ORT, "onnx-fp16", "onnxruntime", ("CPUExecutionProvider",)),
        ("intel-core-ultra-1", INTEL, IGPU, "openvino-int8", "openvino", ("NPU", "CPU")),
        ("intel-core-ultra-2", INTEL, IGPU, "openvino-int8", "openvino", ("NPU", "CPU")),
        ("intel-core-ultra-2", INTEL, OPENVINO, "openvino-int8", "openvino", ("CPU",)),
        ("intel-n100", INTEL + RPI, IGPU | LITERT, "openvino-int8", "openvino", ("CPU",)),
        ("x86-64", INTEL + RPI, IGPU | TRT | LITERT, "openvino-int8", "openvino", ("CPU",)),
        ("x86-64-avx2", INTEL + RPI, NPU | LITERT, "openvino-int8", "openvino", ("CPU",)),
        ("x86-64-avx512-vnni", RPI[3:], TRT, "onnx-int8", "onnxruntime", ("CPUExecutionProvider",)),
        ("x86-64", INTEL + RPI, OPENVINO | ORT | LITERT, "openvino-int8", "openvino", ("CPU",)),
        ("x86-64", RPI, OPENVINO | LITERT, "tflite-int8", "litert", ("CPU",)),
        ("x86-64", JETSON, OPENVINO | ORT, "onnx-fp32", "onnxruntime", ("CPUExecutionProvider",)),
    ],
)
def test_the_choice(
    device: str,
    names: tuple[str, ...],
    installed: dict[str, InstalledRuntime] | None,
    chosen: str,
    runtime: str,
    providers: tuple[str, ...],
) -> None:
    plan = choose(load_profile(device), bundle(names), installed)
    assert (plan.device, plan.artifact, plan.runtime, plan.providers) == (device, chosen, runtime, providers)
    assert plan.reasons


def test_the_table_has_every_device() -> None:
    """Of the NCS2 there is none: nothing can be made for it."""
    (table,) = [mark for mark in test_the_choice.pytestmark if mark.name == "parametrize"]  # type: ignore[attr-defined]
    assert {row[0] for row in table.args[1]} == {*profile_ids()} - {"ncs2"}


@pytest.mark.parametrize("device", profile_ids())
@pytest.mark.parametrize("names", [RPI, JETSON, INTEL, RPI + INTEL, JETSON + INTEL])
@pytest.mark.parametrize(
    "installed", [IGPU | TRT | LITERT, VITIS | NPU | LITERT, None], ids=["all", "vitis", "any"]
)
def test_no_accelerator_is_planned_that_the_device_does_not_have(
    device: str, names: tuple[str, ...], installed: dict[str, InstalledRuntime] | None
) -> None:
    """What a library is built with is no device: a wheel for CUDA runs on a Raspberry Pi's CPU."""
    profile = load_profile(device)
    try:
        plan = choose(profile, bundle(names), installed)
    except (UsageError, UnavailableError):
        return
    kinds = {"NPU": "npu", "VitisAIExecutionProvider": "fpga", "MYRIAD": "npu"}
    kinds |= dict.fromkeys(("TensorrtExecutionProvider", "CUDAExecutionProvider", "GPU"), "gpu")
    for provider in plan.providers:
        assert provider in ("CPU", "CPUExecutionProvider") or kinds[provider] in profile.accelerators


def test_threads_and_options_come_from_the_profile() -> None:
    assert choose(load_profile("raspberry-pi-4"), bundle(RPI), None).threads == 4
    assert choose(load_profile("jetson"), bundle(JETSON), None).options == {"trt_fp16_enable": True}
    symmetric = bundle(JETSON, symmetric_activations=True)
    assert choose(load_profile("jetson-orin-nano"), symmetric, None).options == {"trt_int8_enable": True}


def test_the_preferred_plan_has_one_reason() -> None:
    plan = choose(load_profile("raspberry-pi-4"), bundle(RPI), LITERT)
    assert plan.reasons == ("tflite-int8 (accepted) in litert on CPU: what raspberry-pi-4 prefers",)


def test_a_plan_with_later_providers_to_hand_is_still_the_preferred_one() -> None:
    plan = choose(load_profile("jetson"), bundle(JETSON), TRT)
    assert plan.reasons[-1].endswith("on TensorrtExecutionProvider: what jetson prefers")
    plan = choose(load_profile("intel-npu"), bundle(INTEL[:2]), NPU)
    assert plan.reasons[-1].endswith("on NPU: the best of what is left")


def test_a_precision_that_nobody_lists_comes_last() -> None:
    pi = load_profile("raspberry-pi-4")
    assert choose(pi, bundle(("tflite-int4", "tflite-int16x8")), LITERT).artifact == "tflite-int16x8"
    assert choose(pi, bundle(("tflite-int4",)), LITERT).artifact == "tflite-int4"


def test_each_step_down_is_a_reason() -> None:
    plan = choose(load_profile("jetson"), bundle(JETSON), ORT)
    assert "onnxruntime has no TensorrtExecutionProvider here: stepping down" in plan.reasons
    assert "onnxruntime has no CUDAExecutionProvider here: stepping down" in plan.reasons
    assert plan.reasons[-1].endswith("the best of what is left")
    plan = choose(load_profile("raspberry-pi-4"), bundle(RPI), ORT)
    assert plan.reasons[0] == "litert is not installed: stepping down"
    plan = choose(load_profile("x86-64"), bundle(RPI), LITERT | ORT | OPENVINO)
    assert plan.reasons[0] == "openvino: the bundle has no openvino artifact here"


class Broken(dict[str, InstalledRuntime]):
    problems = {"litert": Problem("libfoo.so.1: cannot open shared object file", missing=False)}  # noqa: RUF012


def test_a_broken_runtime_says_why() -> None:
    plan = choose(load_profile("raspberry-pi-4"), bundle(RPI), Broken(ORT))
    assert plan.reasons[0] == (
        "litert is installed but broken (libfoo.so.1: cannot open shared object file): stepping down"
    )


def test_a_broken_runtime_asked_for_by_hand_is_refused_with_its_reason() -> None:
    pi = load_profile("raspberry-pi-4")
    with pytest.raises(UnavailableError, match=r"broken \(libfoo\.so\.1: cannot open") as caught:
        choose(pi, bundle(RPI), Broken(ORT), runtime="litert", forced=True)
    assert caught.value.exit_code == 5
    assert "edgekit doctor" in str(caught.value.hint)
    assert "onnxruntime 1.31.1" in str(caught.value.got)


def test_what_is_broken_is_not_to_be_installed_again() -> None:
    with pytest.raises(UnavailableError) as caught:
        choose(load_profile("raspberry-pi-4"), bundle(RPI), Broken())
    hint = str(caught.value.hint)
    assert "[onnx]" in hint
    assert "tflite" not in hint
    assert "edgekit doctor" in hint


@pytest.mark.parametrize(
    ("device", "installed", "wanted", "there"),
    [
        (
            "jetson-orin-nano",
            ORT | LITERT,
            "onnxruntime with TensorrtExecutionProvider",
            "onnxruntime 1.31.1",
        ),
        (
            "jetson-orin-nano",
            LITERT,
            "onnxruntime with TensorrtExecutionProvider",
            "ai-edge-litert 2.3.0 (CPU)",
        ),
        ("jetson", NOTHING, "onnxruntime with TensorrtExecutionProvider", "no runtime"),
        ("jetson", CUDA, "onnxruntime with TensorrtExecutionProvider", "CUDAExecutionProvider"),
    ],
)
def test_a_forced_device_whose_provider_is_absent_is_refused(
    device: str, installed: dict[str, InstalledRuntime], wanted: str, there: str
) -> None:
    with pytest.raises(UnavailableError) as caught:
        choose(load_profile(device), bundle(JETSON), installed, forced=True)
    assert caught.value.exit_code == 5
    assert caught.value.expected == wanted
    assert there in str(caught.value.got)
    assert "--allow-fallback" in str(caught.value)


def test_what_is_there_is_told_without_the_double() -> None:
    with pytest.raises(UnavailableError) as caught:
        choose(load_profile("jetson"), bundle(JETSON), LITERT | NPU | NULL, forced=True)
    assert caught.value.got == "ai-edge-litert 2.3.0 (CPU); openvino 2026.4.1 (CPU, NPU)"
    with pytest.raises(UnavailableError) as caught:
        choose(load_profile("jetson"), bundle(JETSON), NULL, forced=True)
    assert caught.value.got == "no runtime"


def test_a_forced_device_steps_down_when_told_to_and_says_so() -> None:
    plan = choose(load_profile("jetson-orin-nano"), bundle(JETSON), ORT, forced=True, allow_fallback=True)
    assert (plan.artifact, plan.providers) == ("onnx-fp16", ("CPUExecutionProvider",))
    assert any("TensorrtExecutionProvider" in reason for reason in plan.reasons)


def test_a_forced_device_that_is_all_there_is_taken() -> None:
    plan = choose(load_profile("raspberry-pi-4"), bundle(RPI), LITERT, forced=True)
    assert plan.artifact == "tflite-int8"


def test_a_forced_device_may_lack_what_the_bundle_does_not_need() -> None:
    plan = choose(load_profile("x86-64"), bundle(("tflite-fp32",)), LITERT, forced=True)
    assert plan.runtime == "litert"


def test_a_forced_runtime() -> None:
    pi, many = load_profile("raspberry-pi-4"), LITERT | ORT | OPENVINO | NULL
    plan = choose(pi, bundle(RPI), many, runtime="onnxruntime", forced=True)
    assert (plan.artifact, plan.threads) == ("onnx-int8", 4)
    plan = choose(pi, bundle(RPI), many, runtime="null", forced=True)
    assert (plan.artifact, plan.runtime, plan.providers, plan.threads) == ("tflite-fp32", "null", (), 0)
    assert plan.reasons[0] == "null was asked for by hand; raspberry-pi-4 does not list it"
    with pytest.raises(UnavailableError, match="litert is not installed"):
        choose(pi, bundle(RPI), ORT, runtime="litert", forced=True)
    with pytest.raises(UsageError, match="no artifact of the bundle fits openvino") as caught:
        choose(pi, bundle(RPI), many, runtime="openvino", forced=True)
    assert caught.value.got == ", ".join(RPI)
    with pytest.raises(UsageError, match=r"unknown runtime 'tensorrt'.*litert, onnxruntime, openvino, null"):
        choose(pi, bundle(RPI), many, runtime="tensorrt")


def test_null_is_never_chosen_unasked() -> None:
    for profile_id in profile_ids():
        assert all(each.runtime != "null" for each in load_profile(profile_id).runtimes)
    with pytest.raises(UnavailableError):
        choose(load_profile("raspberry-pi-4"), bundle(RPI), NULL)


def test_an_accepted_fp32_beats_an_unproven_int8() -> None:
    mixed = manifest(artifact("tflite-int8", "unproven"), artifact("tflite-fp32"))
    pi = load_profile("raspberry-pi-4")
    plan = choose(pi, mixed, LITERT)
    assert plan.artifact == "tflite-fp32"
    assert plan.reasons[0] == "tflite-int8 is unproven: an accepted artifact goes first"
    assert choose(pi, mixed, LITERT, allow_unproven=True).artifact == "tflite-int8"


def test_an_accepted_artifact_of_a_later_runtime_beats_an_unproven_one_of_the_first() -> None:
    mixed = manifest(artifact("tflite-int8", "unproven"), artifact("onnx-fp32"))
    pi = load_profile("raspberry-pi-4")
    assert choose(pi, mixed, LITERT | ORT).artifact == "onnx-fp32"
    assert choose(pi, mixed, LITERT).artifact == "tflite-int8"
    assert choose(pi, mixed, LITERT, forced=True).artifact == "tflite-int8"


def test_an_unproven_one_is_taken_where_nothing_accepted_can_run() -> None:
    mixed = manifest(artifact("tflite-int8", "unproven"), artifact("tflite-int8-dynamic", "unproven"))
    plan = choose(load_profile("raspberry-pi-4"), mixed, LITERT)
    assert plan.artifact == "tflite-int8"
    assert "no accepted artifact can run here, so an unproven one is taken" in plan.reasons


def test_a_refused_artifact_is_never_taken() -> None:
    pi = load_profile("raspberry-pi-4")
    plan = choose(pi, manifest(artifact("tflite-int8", "refused"), artifact("tflite-fp32")), LITERT)
    assert plan.artifact == "tflite-fp32"
    assert plan.reasons[0] == "tflite-int8: the gate refused it"
    for allow in (False, True):
        with pytest.raises(RefusedError, match="the gate refused every artifact"):
            choose(pi, manifest(artifact("tflite-int8", "refused")), LITERT, allow_unproven=allow)


def test_only_artifacts_whose_files_are_there() -> None:
    plan = choose(load_profile("raspberry-pi-4"), bundle(RPI), LITERT, kept={"tflite-fp32", "onnx-int8"})
    assert plan.artifact == "tflite-fp32"
    with pytest.raises(UsageError, match="no artifact") as caught:
        choose(load_profile("raspberry-pi-4"), bundle(RPI), LITERT, kept=())
    assert caught.value.got == "no artifact"


def test_nothing_fits() -> None:
    with pytest.raises(UsageError, match="no artifact of the bundle fits jetson") as caught:
        choose(load_profile("jetson"), bundle(("tflite-int8",)), TRT)
    assert caught.value.hint == "Convert again with --target jetson."


def test_a_missing_runtime_names_the_command() -> None:
    with pytest.raises(UnavailableError) as caught:
        choose(load_profile("raspberry-pi-4"), bundle(RPI), NOTHING)
    assert caught.value.hint == "Run: pip install 'edgekit-deploy[tflite,onnx]'."
    assert "litert is not installed: stepping down; onnxruntime is not installed" in caught.value.what
    with pytest.raises(UnavailableError) as caught:
        choose(load_profile("raspberry-pi-4"), bundle(RPI), NOTHING, runtime="null")
    assert caught.value.hint is None


def test_a_free_shape_does_not_go_to_an_npu() -> None:
    free = manifest(artifact("openvino-fp16", batch=-1))
    ultra = load_profile("intel-core-ultra")
    plan = choose(ultra, free, NPU)
    assert plan.providers == ("CPU",)
    assert plan.reasons[0] == "openvino-fp16: NPU takes static shapes only, and input 'image' has a free size"
    with pytest.raises(UsageError, match="static shapes only") as caught:
        choose(ultra, free, NPU, forced=True)
    assert "--target intel-core-ultra" in str(caught.value.hint)
    both = manifest(artifact("openvino-int8", batch=-1), artifact("openvino-fp16"))
    assert choose(ultra, both, NPU).artifact == "openvino-fp16"
    assert choose(ultra, both, NPU).providers == ("NPU", "CPU")


def test_an_npu_called_by_number_counts() -> None:
    two = {"openvino": InstalledRuntime("openvino 2026.4.1", ("CPU", "NPU.0", "NPU.1"))}
    assert choose(load_profile("intel-npu"), bundle(INTEL), two, forced=True).providers == ("NPU", "CPU")


def test_int8_follows_the_cpu_not_the_hope() -> None:
    x86, full, reduced = load_profile("x86-64"), bundle(RPI[3:]), bundle(RPI[3:], reduce_range=True)
    plan = choose(x86, full, ORT)
    assert plan.artifact == "onnx-fp32"
    assert any(reason.startswith("onnx-int8: 8-bit weights may saturate") for reason in plan.reasons)
    assert choose(x86, reduced, ORT).artifact == "onnx-int8"
    assert choose(x86.on(("avx2", "avx512-vnni")), full, ORT).artifact == "onnx-int8"
    assert choose(x86.on(("avx2",)), full, ORT).artifact == "onnx-fp32"


def test_an_fpga_takes_symmetric_int8_only() -> None:
    kria = load_profile("kria")
    plan = choose(kria, bundle(RPI, symmetric_activations=True), VITIS | LITERT)
    assert (plan.artifact, plan.providers) == ("onnx-int8", VITIS["onnxruntime"].providers)
    assert plan.options == {"vitisai_config_file": "/etc/vaip_config.json"}
    said = choose(kria, bundle(RPI), VITIS | LITERT).reasons[0]
    assert said == "onnx-int8: made with zero points other than 0, which the compiler of kria does not take"


def test_tensorrt_takes_symmetric_int8_only() -> None:
    orin = load_profile("jetson-orin-nano")
    assert choose(orin, bundle(JETSON, symmetric_activations=True), TRT).artifact == "onnx-int8"
    plan = choose(orin, bundle(JETSON), TRT)
    assert plan.artifact == "onnx-fp16"
    assert any("zero points other than 0" in reason for reason in plan.reasons)


def test_another_instruction_set_than_the_judges_is_said() -> None:
    judged = manifest(artifact("tflite-int8", isa="x86-64+avx512-vnni"))
    plan = choose(load_profile("raspberry-pi-4"), judged, LITERT)
    assert plan.reasons[0] == "tflite-int8 was judged on x86-64+avx512-vnni; raspberry-pi-4 is aarch64"
    unknown = choose(load_profile("x86-64"), judged, LITERT)
    assert (
        "tflite-int8 was judged on x86-64+avx512-vnni; x86-64 is x86-64, perhaps without avx512-vnni"
        in unknown.reasons
    )
    same = load_profile("x86-64").on(("avx2", "avx512", "avx512-vnni"))
    assert all("judged" not in reason for reason in choose(same, judged, LITERT).reasons)


def test_the_plan_survives_json() -> None:
    plan = choose(load_profile("jetson"), bundle(JETSON), ORT)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


@pytest.mark.parametrize("device", profile_ids())
@pytest.mark.parametrize("installed", [None, NOTHING, LITERT, ORT, NPU, LITERT | TRT | NPU])
@pytest.mark.parametrize("names", [(), RPI, JETSON, INTEL, RPI + INTEL])
@pytest.mark.parametrize("forced", [False, True])
def test_every_plan_can_run_and_every_refusal_is_an_error_of_ours(
    device: str, installed: dict[str, InstalledRuntime] | None, names: tuple[str, ...], forced: bool
) -> None:
    profile, whole = load_profile(device), bundle(names)
    try:
        plan = choose(profile, whole, installed, forced=forced)
    except (UsageError, UnavailableError):
        return
    assert plan.artifact in whole.artifacts
    if installed is not None:
        assert plan.runtime in installed
        assert set(plan.providers) <= set(installed[plan.runtime].providers)
    if forced:
        listed = next(each for each in profile.runtimes if each.runtime == plan.runtime)
        assert plan.providers == listed.providers


def test_what_is_installed_is_asked_for_once_and_only_when_wanted() -> None:
    found = InstalledRuntimes(("null", "litert"))
    assert "null" in found
    assert found.problems.keys() <= {"null"}
    assert found.get("onnxruntime") is None
    assert found["null"] is found["null"]


def test_this_machine_s_runtimes_are_listed_without_raising() -> None:
    found = installed_runtimes()
    assert "null" in list(found)
    assert len(found) + len(found.problems) == 4
    assert all(each.version for each in found.values())
    assert all(each.providers for each in found.values())
    assert all("pip install" in problem.why for problem in found.problems.values())
