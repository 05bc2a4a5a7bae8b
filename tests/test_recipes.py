from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from edgekit.devices import DeviceProfile, load_profile, profile_ids
from edgekit.errors import ConversionError, UsageError
from edgekit.manifest import Recipe
from edgekit.recipes import (
    Wanted,
    check_formats,
    check_recipes,
    onnx_versions,
    preference_for,
    read_recipes,
    recipe_for,
    wanted_artifacts,
)
from edgekit.routes import converters

TABLE = converters()
PI, JETSON, NPU, X86, KRIA = (
    load_profile(name) for name in ("raspberry-pi-4", "jetson", "intel-npu", "x86-64", "kria")
)


def names(wanted: list[Wanted]) -> list[str]:
    return [item.name for item in wanted]


def want(
    profile: DeviceProfile, kind: str = "keras", *, calibrated: bool = True, **asked: Any
) -> list[Wanted]:
    return wanted_artifacts(profile, kind, TABLE, calibrated=calibrated, **asked)


# What is made


def test_a_target_gets_the_formats_of_its_runtimes_fp32_first() -> None:
    assert names(want(PI)) == ["tflite-fp32", "tflite-int8", "tflite-int8-dynamic", "onnx-fp32", "onnx-int8"]
    assert names(want(JETSON)) == ["onnx-fp32", "onnx-fp16", "onnx-int8"]
    assert names(want(NPU)) == ["openvino-fp32", "openvino-int8", "openvino-fp16"]


def test_each_has_its_routes_and_none_is_skipped_when_there_is_data() -> None:
    assert [item.routes[0] for item in want(JETSON)] == [
        ("keras-onnx",),
        ("keras-onnx", "onnx-fp16"),
        ("keras-onnx", "onnx-int8"),
    ]
    assert not any(item.skipped or item.by_name for item in want(PI))


def test_without_calibration_static_int8_is_skipped_with_the_flag_to_give() -> None:
    skipped = {item.name: item.skipped for item in want(PI, calibrated=False) if item.skipped}
    assert skipped == {
        "tflite-int8": "static int8 needs --calibration",
        "onnx-int8": "static int8 needs --calibration",
    }


def test_formats_that_the_target_cannot_open_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no runtime of jetson opens .*: got tflite, expected one of onnx"):
        check_formats(JETSON, ("tflite",))
    check_formats(JETSON, ("tflite", "onnx"))
    check_formats(JETSON, ())


def test_what_has_no_route_is_skipped_unless_asked_for() -> None:
    skipped = {item.name: item.skipped for item in want(PI, "onnx") if item.skipped}
    assert skipped == {
        f"tflite-{precision}": f"no route from onnx to tflite-{precision}"
        for precision in ("fp32", "int8", "int8-dynamic")
    }
    assert "tflite-int8" in {i.name for i in want(PI, "onnx", calibrated=False) if "no route" in i.skipped}
    with pytest.raises(ConversionError, match=r"no route from onnx to tflite-fp32\. `edgekit check` lists"):
        want(PI, "onnx", formats=("tflite",), precisions=("fp32",))


def test_a_precision_asked_for_is_made_in_the_formats_that_have_it() -> None:
    asked = want(PI, precisions=("int16x8",))
    assert [(item.name, item.skipped) for item in asked] == [
        ("tflite-int16x8", ""),
        ("onnx-int16x8", "no route from keras to onnx-int16x8"),
    ]
    assert names(want(PI, "onnx", precisions=("fp32",))) == ["tflite-fp32", "onnx-fp32"]
    with pytest.raises(ConversionError, match="no route from keras to onnx-int16x8"):
        want(PI, precisions=("int16x8",), formats=("tflite", "onnx"))
    with pytest.raises(ConversionError, match="no route from keras to openvino-int16x8"):
        want(NPU, precisions=("fp32", "int16x8"))


def test_formats_and_precisions_asked_for_are_what_is_made() -> None:
    assert names(want(PI, formats=("openvino",))) == ["openvino-fp32"]
    assert names(want(PI, formats=("onnx",))) == ["onnx-fp32", "onnx-int8"]
    asked = want(PI, precisions=("fp16",), formats=("tflite",))
    assert names(asked) == ["tflite-fp16"]
    assert all(item.by_name for item in asked)
    assert names(want(JETSON, precisions=("int8", "fp32"))) == ["onnx-int8", "onnx-fp32"]
    assert not any(item.by_name for item in want(PI, formats=("onnx",)))


def test_unknown_words_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown format 'coreml': expected one of tflite, onnx, openvino"):
        want(PI, formats=("coreml",))
    with pytest.raises(UsageError, match="unknown precision 'int4': expected one of fp32, "):
        want(PI, precisions=("int4",))
    with pytest.raises(UsageError, match="unknown precision 'int4'"):
        want(PI, precisions=("fp32", "int4"))


def test_int8_by_name_without_calibration_is_an_error() -> None:
    with pytest.raises(
        UsageError, match=r"static int8 needs calibration data. Give --calibration with about 200"
    ):
        want(PI, precisions=("int8",), calibrated=False)
    assert names(want(PI, precisions=("fp32",), formats=("onnx",), calibrated=False)) == ["onnx-fp32"]


# Recipes


def test_only_static_integers_are_calibrated() -> None:
    route = ("keras-tflite",)
    assert recipe_for(PI, route, "tflite", "fp32", 200) == Recipe(route=route, precision="fp32")
    assert recipe_for(PI, route, "tflite", "int8-dynamic", 200) == Recipe(
        route=route, precision="int8-dynamic"
    )
    assert recipe_for(PI, route, "tflite", "fp16", 200) == Recipe(route=route, precision="fp16")
    for precision in ("int8", "int16x8"):
        assert recipe_for(PI, route, "tflite", precision, 200) == Recipe(
            route=route, precision=precision, calibration="minmax", calibration_samples=200
        )


@pytest.mark.parametrize(
    ("profile", "options"),
    [
        (PI, ("int8", False, False)),
        (JETSON, ("int8", True, False)),
        (X86, ("uint8", False, True)),
        (X86.on(("avx2", "avx512-vnni")), ("uint8", False, False)),
        (X86.on(("avx2",)), ("uint8", False, True)),
    ],
)
def test_onnx_int8_follows_the_targets_kernels(
    profile: DeviceProfile, options: tuple[str, bool, bool]
) -> None:
    activation, symmetric, reduced = options
    assert recipe_for(profile, ("x",), "onnx", "int8", 9).options == {
        "activation": activation,
        "symmetric_activations": symmetric,
        "reduce_range": reduced,
        "per_channel": True,
    }


def test_onnx_fp32_is_written_for_the_oldest_reader() -> None:
    assert recipe_for(PI, ("x",), "onnx", "fp32", 0).options == {"opset": 17, "ir": 8}
    old = msgspec.structs.replace(PI, max_opset=13, max_ir=7)
    assert onnx_versions(old) == (13, 7)
    assert recipe_for(old, ("x",), "onnx", "fp32", 0).options == {"opset": 13, "ir": 7}
    assert onnx_versions(msgspec.structs.replace(PI, max_opset=30, max_ir=20)) == (17, 8)
    assert recipe_for(PI, ("x",), "onnx", "fp16", 0).options == {}
    assert recipe_for(PI, ("x",), "tflite", "int8", 0).options == {}


def test_openvino_freezes_shapes_where_the_accelerator_needs_it() -> None:
    assert recipe_for(NPU, ("x",), "openvino", "fp32", 0).options == {"static": True}
    assert recipe_for(X86, ("x",), "openvino", "fp16", 0).options == {"static": False}


def test_onnx_is_frozen_where_a_compiler_reads_it_that_takes_fixed_shapes_only() -> None:
    assert recipe_for(KRIA, ("x",), "onnx", "fp32", 0).options == {"opset": 17, "ir": 8, "static": True}
    own = recipe_for(KRIA, ("onnx-fp32",), "onnx", "fp32", 0).options
    assert own == {"opset": 18, "ir": 8, "static": True}
    for precision in ("int8", "int8-dynamic", "fp16"):  # made of the float one, which is frozen already
        assert "static" not in recipe_for(KRIA, ("x", "y"), "onnx", precision, 5).options
    assert "static" not in recipe_for(KRIA, ("x",), "tflite", "fp32", 0).options
    assert "static" not in recipe_for(NPU, ("x",), "onnx", "fp32", 0).options  # no compiler of ONNX there


@pytest.mark.parametrize("device", [each for each in profile_ids() if each.startswith("jetson")])
def test_tensorrt_asks_for_no_fixed_shapes(device: str) -> None:
    """It takes profiles of shapes in their place, see `edgekit.engines.shape_profiles`."""
    profile = load_profile(device)
    assert not profile.static_shapes
    assert "static" not in recipe_for(profile, ("x",), "onnx", "fp32", 0).options


def test_the_users_own_onnx_is_lowered_only_as_far_as_the_target_reads() -> None:
    assert recipe_for(X86, ("onnx-fp32",), "onnx", "fp32", 0).options == {"opset": 21, "ir": 10}
    assert recipe_for(X86, ("keras-onnx",), "onnx", "fp32", 0).options == {"opset": 17, "ir": 8}


def test_dynamic_int8_keeps_to_seven_bits_where_eight_saturate() -> None:
    assert recipe_for(X86, ("x",), "onnx", "int8-dynamic", 0).options == {"reduce_range": True}
    assert recipe_for(NPU, ("x",), "onnx", "int8-dynamic", 0).options == {"reduce_range": False}


def test_openvino_int8_is_made_for_its_device() -> None:
    assert recipe_for(NPU, ("x",), "openvino", "int8", 5).options == {
        "static": True,
        "device": "NPU",
        "reduce_range": False,
    }
    assert recipe_for(X86, ("x",), "openvino", "int8", 5).options == {
        "static": False,
        "device": "CPU",
        "reduce_range": True,
    }


# Where an artifact is judged


def test_an_artifact_is_judged_in_the_runtime_that_the_target_prefers() -> None:
    assert preference_for(PI, "tflite") is PI.runtimes[0]
    assert preference_for(PI, "onnx") is PI.runtimes[1]
    assert preference_for(PI, "onnx").threads == 4


def test_a_format_outside_the_targets_runtimes_runs_at_defaults() -> None:
    fallback = preference_for(PI, "openvino")
    assert (fallback.runtime, fallback.precisions, fallback.threads) == ("openvino", ("fp32",), 0)
    assert preference_for(JETSON, "tflite").runtime == "litert"


@pytest.mark.parametrize("profile_id", profile_ids())
def test_every_profile_has_a_route_from_keras_for_all_it_lists(profile_id: str) -> None:
    profile = load_profile(profile_id)
    made = want(profile)
    assert not [item.name for item in made if item.skipped]
    assert {(item.format, item.precision) for item in made} == set(profile.artifacts())


# A source that is quantized already


def test_a_quantized_source_goes_through_as_it_is() -> None:
    wanted = want(X86, "onnx", quantized="int8")
    made = {item.name: item for item in wanted if not item.skipped}
    assert set(made) == {"openvino-int8", "onnx-int8"}
    assert made["onnx-int8"].routes[0] == ("onnx-fp32",)
    assert {item.made_as for item in made.values()} == {"fp32"}
    skipped = {item.name: item.skipped for item in wanted if item.skipped}
    assert "--requantize" in skipped["onnx-fp32"]


def test_what_is_asked_by_name_is_not_made_of_a_quantized_source() -> None:
    with pytest.raises(ConversionError, match="the source is int8 already; --requantize makes fp16 of it"):
        want(X86, "onnx", quantized="int8", precisions=("fp16",), formats=("onnx",))


def test_requantize_makes_what_a_float_source_would() -> None:
    again = want(X86, "onnx", quantized="int8", requantize=True)
    assert names(again) == names(want(X86, "onnx"))


# Recipes of the user


def test_recipes_must_fit() -> None:
    wanted = want(PI)
    good = Recipe(("keras-tflite",), "int8", "minmax", 200)
    check_recipes({"tflite-int8": good}, wanted, "keras", PI)
    for recipes, words in (
        ({"openvino-int8": good}, "openvino-int8, which is not to be made"),
        ({"onnx-int8": good}, "does not lead there"),
        ({"tflite-int8": replace(good, precision="fp16")}, "does not lead there"),
        ({"tflite-int8": replace(good, route=("nowhere",))}, "does not lead there"),
        ({"tflite-int8": replace(good, route=("keras-onnx", "keras-tflite"))}, "does not hold together"),
        ({"tflite-int8": replace(good, calibration="mean")}, "cannot be calibrated so: got 'mean'"),
        ({"tflite-int8": replace(good, float_layers=("n1",))}, "keeps no layers of tflite-int8 in float"),
        ({"tflite-int8": replace(good, options={"opset": 21})}, "unknown option 'opset'"),
    ):
        with pytest.raises(UsageError, match=words):
            check_recipes(recipes, wanted, "keras", PI)


def test_a_recipe_of_another_target_is_refused() -> None:
    """Eight-bit weights saturate where there is no VNNI; a newer opset is not read: the target decides, not the file."""
    route = ("keras-onnx", "onnx-int8")
    of_pi = recipe_for(PI, route, "onnx", "int8", 200)
    check_recipes({"onnx-int8": of_pi}, want(PI), "keras", PI)
    with pytest.raises(UsageError, match="made for another target: option 'activation' does not suit x86-64"):
        check_recipes({"onnx-int8": of_pi}, want(X86), "keras", X86)
    wide = recipe_for(X86, route, "onnx", "int8", 200)
    wide = replace(wide, options={**wide.options, "reduce_range": False})
    with pytest.raises(
        UsageError, match="option 'reduce_range' does not suit x86-64: got False, expected True"
    ):
        check_recipes({"onnx-int8": wide}, want(X86), "keras", X86)
    newer = replace(recipe_for(PI, ("keras-onnx",), "onnx", "fp32", 0), options={"opset": 23, "ir": 10})
    with pytest.raises(UsageError, match="option 'opset' does not suit raspberry-pi-4: got 23, expected 17"):
        check_recipes({"onnx-fp32": newer}, want(PI), "keras", PI)


def test_every_rung_is_a_recipe_that_may_be_given() -> None:
    for target in (PI, JETSON, NPU, X86):
        for item in want(target):
            for route in item.routes:
                plain = recipe_for(target, route, item.format, item.precision, 200)
                rungs = TABLE[route[-1]].rungs if plain.calibration else ()
                for rung in rungs:
                    recipe = replace(
                        plain, calibration=rung.calibration, options=plain.options | rung.options
                    )
                    check_recipes({item.name: recipe}, [item], "keras", target)


def test_recipes_are_read_back(tmp_path: Path) -> None:
    recipe = Recipe(("keras-tflite",), "int8", "mse", 200, {"bias_correction": "full"}, ("n1",))
    (tmp_path / "r.json").write_bytes(msgspec.json.encode({"tflite-int8": recipe}))
    assert read_recipes(tmp_path / "r.json") == {"tflite-int8": recipe}
    for text in ("{}", "[1]", '{"a": {}}', "\xff"):
        (tmp_path / "bad.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(UsageError, match="--recipe"):
            read_recipes(tmp_path / "bad.json")
