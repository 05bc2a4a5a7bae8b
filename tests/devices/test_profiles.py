from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgekit import devices
from edgekit.devices import FORMATS, DeviceProfile, load_profile, load_target, profile_ids, read_profile
from edgekit.errors import InvalidFileError, UsageError

pytestmark = pytest.mark.device

FOLDER = Path(devices.__file__).parent
PARENT = """
name = "Parent"
family = "parent"
arch = "aarch64"
isa = ["neon"]
max_opset = 17
max_ir = 8
verified = "hardware"
notes = ["of the parent"]
[int8]
activation = "int8"
weights = "int8"
symmetric_activations = false
reduce_range = false
[match]
compatible = ["acme,parent"]
[[runtimes]]
runtime = "litert"
precisions = ["int8", "fp32"]
threads = 4
options = { alpha = 1 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "parent.toml").write_text(PARENT)
    return tmp_path


def child(folder: Path, text: str) -> DeviceProfile:
    (folder / "child.toml").write_text(text)
    return read_profile("child", folder)


@pytest.mark.parametrize("profile_id", profile_ids())
def test_every_profile_loads(profile_id: str) -> None:
    profile = load_profile(profile_id)
    assert profile.id == profile_id
    assert profile.family in profile_ids()
    assert load_profile(profile.family).arch == profile.arch
    assert profile.formats()


def test_the_listed_devices_are_there() -> None:
    assert profile_ids() == (
        "generic-aarch64", "intel-core-ultra", "intel-core-ultra-1", "intel-core-ultra-2", "intel-n100", "intel-npu",
        "jetson", "jetson-agx-orin", "jetson-nano", "jetson-orin", "jetson-orin-nano", "jetson-thor", "jetson-xavier-nx",
        "kria", "ncs2", "raspberry-pi", "raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-zero-2w",
        "rk3588", "x86-64", "x86-64-avx2", "x86-64-avx512-vnni",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("profile_id", "made"),
    [
        ("raspberry-pi-4", {"tflite-fp32", "tflite-int8", "tflite-int8-dynamic", "onnx-fp32", "onnx-int8"}),
        ("jetson", {"onnx-fp32", "onnx-fp16", "onnx-int8"}),
        ("jetson-orin-nano", {"onnx-fp32", "onnx-fp16", "onnx-int8"}),
        ("jetson-nano", {"onnx-fp32", "onnx-fp16"}),
        ("kria", {"onnx-fp32", "onnx-int8", "tflite-fp32", "tflite-int8", "tflite-int8-dynamic"}),
        ("intel-npu", {"openvino-fp32", "openvino-fp16", "openvino-int8"}),
        (
            "x86-64",
            {
                "openvino-fp32", "openvino-int8", "onnx-fp32", "onnx-int8",
                "tflite-fp32", "tflite-int8", "tflite-int8-dynamic",
            },
        ),
    ],
)  # fmt: skip
def test_what_convert_makes_for_a_target(profile_id: str, made: set[str]) -> None:
    artifacts = load_profile(profile_id).artifacts()
    assert {f"{form}-{precision}" for form, precision in artifacts} == made
    assert len(artifacts) == len(made)


def test_fp32_comes_first_in_every_format() -> None:
    for profile_id in profile_ids():
        profile = load_profile(profile_id)
        assert profile.precisions()[0] == "fp32"
        assert all(profile.precisions(form)[0] == "fp32" for form in profile.formats())


def test_tensorrt_gets_symmetric_int8_and_old_x86_a_reduced_range() -> None:
    jetson, x86, pi = (
        load_profile("jetson").int8,
        load_profile("x86-64").int8,
        load_profile("raspberry-pi").int8,
    )
    assert (jetson.activation, jetson.weights, jetson.symmetric_activations, jetson.reduce_range) == (
        "int8", "int8", True, False,
    )  # fmt: skip
    assert (x86.activation, x86.symmetric_activations, x86.reduce_range) == ("uint8", False, True)
    assert (pi.activation, pi.symmetric_activations, pi.reduce_range) == ("int8", False, False)


@pytest.mark.parametrize("feature", ["avx-vnni", "avx512-vnni", "amx-int8"])
def test_vnni_lifts_the_reduced_range(feature: str) -> None:
    profile = load_profile("x86-64").on(("avx2", feature))
    assert not profile.int8.reduce_range
    assert profile.isa == ("avx2", feature)
    assert load_profile("x86-64").on(("avx2", "avx512")).int8.reduce_range


def test_features_of_an_arm_core_leave_its_policy_alone() -> None:
    profile = load_profile("raspberry-pi-4")
    assert profile.on(("neon", "asimddp")).int8 == profile.int8


def test_a_family_is_no_bolder_than_its_members() -> None:
    for profile_id in profile_ids():
        member, family = load_profile(profile_id), load_profile(load_profile(profile_id).family)
        assert set(family.isa) <= set(member.isa)
        assert family.max_opset <= member.max_opset
        assert family.max_ir <= member.max_ir
        assert family.static_shapes >= member.static_shapes
        assert (family.ram_mib or 0) <= (member.ram_mib or 0)
        assert family.int8.symmetric_activations >= member.int8.symmetric_activations
        assert family.int8.reduce_range >= member.int8.reduce_range


def test_a_withdrawn_device_is_no_target_and_the_way_out_is_named() -> None:
    assert load_profile("ncs2").withdrawn
    with pytest.raises(
        UsageError, match=r"MYRIAD\) is no target any more\. OpenVINO dropped .* 2022\.3.*x86-64"
    ):
        load_target("ncs2")
    assert load_target("raspberry-pi-4") == load_profile("raspberry-pi-4")


def test_what_withdraws_a_parent_does_not_withdraw_its_child(folder: Path) -> None:
    (folder / "parent.toml").write_text('withdrawn = "gone"\n' + PARENT)
    made = child(folder, 'extends = "parent"\nname = "Child"\nfamily = "parent"\nverified = "fixture"\n')
    assert read_profile("parent", folder).withdrawn == "gone"
    assert not made.withdrawn


def test_only_what_ran_on_hardware_says_so() -> None:
    assert {each for each in profile_ids() if load_profile(each).verified == "hardware"} == {
        "x86-64", "x86-64-avx512-vnni",
    }  # fmt: skip


def test_every_file_names_its_sources() -> None:
    for profile_id in profile_ids():
        comments = [
            line for line in (FOLDER / f"{profile_id}.toml").read_text().splitlines() if line.startswith("#")
        ]
        assert re.search(r"https?://|Manual|Linux kernel|Intel SDM", "\n".join(comments)), profile_id


def test_the_formats_are_those_of_the_runtimes() -> None:
    from edgekit.runtimes import RUNTIMES, get_runtime

    assert set(FORMATS) == set(RUNTIMES)
    for name, formats in FORMATS.items():
        assert set(formats) <= set(get_runtime(name).formats), name


def test_an_unknown_device_lists_the_known_and_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown device 'raspbery-pi4'") as caught:
        load_profile("raspbery-pi4")
    assert "jetson-orin-nano" in str(caught.value)
    assert caught.value.hint == "Did you mean 'raspberry-pi-4'?"
    with pytest.raises(UsageError) as far:
        load_profile("zzzz")
    assert far.value.hint is None


def test_a_child_replaces_values_merges_tables_and_keeps_the_rest(folder: Path) -> None:
    profile = child(
        folder,
        'extends = "parent"\nname = "Child"\nverified = "fixture"\nram_mib = 2048\n[int8]\nreduce_range = true\n',
    )
    assert (profile.name, profile.ram_mib, profile.arch) == ("Child", 2048, "aarch64")
    assert (profile.int8.reduce_range, profile.int8.activation) == (True, "int8")
    assert profile.runtimes[0].options == {"alpha": 1}
    assert profile.lineage == ("parent",)


def test_notes_of_the_family_hold_for_the_member(folder: Path) -> None:
    head = 'extends = "parent"\nname = "Child"\nverified = "fixture"\n'
    assert child(folder, head).notes == ("of the parent",)
    assert child(folder, head + 'notes = ["own"]\n').notes == ("own", "of the parent")


def test_a_child_never_inherits_what_identifies_or_vouches_for_its_parent(folder: Path) -> None:
    profile = child(folder, 'extends = "parent"\nname = "Child"\nverified = "fixture"\n')
    assert profile.match is None
    with pytest.raises(InvalidFileError, match=r"child\.toml.*`verified`"):
        child(folder, 'extends = "parent"\nname = "Child"\n')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "', r"child\.toml is not TOML"),
        ("ram_gb = 4", r"child\.toml: unknown key 'ram_gb'.*Did you mean 'ram_mib'"),
        ("ram_mib = 4", r"child\.toml: key 'ram_mib': Expected `int` >= 64"),
        ("clock_mhz = 1.5", r"child\.toml: key 'clock_mhz': Expected `int"),
        ("clock_mhz = 1500000000", r"child\.toml: key 'clock_mhz': Expected `int` <= 10000"),
        ('cores = "4"', r"child\.toml: key 'cores': Expected `int"),
        ('isa = ["dotprod"]', r"child\.toml: key 'isa\[0\]': Invalid enum value 'dotprod'"),
        ('arch = "armv7l"', r"child\.toml: key 'arch': Invalid enum value 'armv7l'"),
        ("[int8]\nzero_point = 0", r"child\.toml: key 'int8': Object contains unknown field `zero_point`"),
        ('[match]\npci = ["8086:7D1D"]', r"child\.toml: key 'match.pci\[.*\]': Expected `str` matching"),
        (
            '[[runtimes]]\nruntime = "litert"\nprecisions = ["int4"]',
            r"child\.toml: key 'runtimes\[.+\]\.precisions\[.+\]': Invalid enum value 'int4'",
        ),
        (
            '[[runtimes]]\nruntime = "tensorrt"\nprecisions = ["fp16"]',
            r"child\.toml: key 'runtimes\[.+\]\.runtime'",
        ),
        ("runtimes = []", r"child\.toml: key 'runtimes'"),
        ("extends = 3", r"child\.toml: key 'extends' has the wrong type: got 3"),
        (
            'extends = "parrot"',
            r"child\.toml: key 'extends' names an unknown profile.*'parrot'.*Did you mean 'parent'",
        ),
        ('extends = "child"', r"child\.toml: key 'extends' closes a circle: got child -> child"),
    ],
)
def test_a_bad_file_is_refused_naming_file_and_key(folder: Path, text: str, message: str) -> None:
    head = "" if "extends" in text else 'extends = "parent"\n'
    whole = f'{head}name = "Child"\nverified = "fixture"\n{text}\n' if "name" not in text else text
    with pytest.raises(InvalidFileError, match=message):
        child(folder, whole)


def test_a_bad_value_is_blamed_on_the_file_that_holds_it(folder: Path) -> None:
    (folder / "parent.toml").write_text(PARENT.replace("max_ir = 8", 'max_ir = "8"'))
    with pytest.raises(InvalidFileError, match=r"^parent\.toml: key 'max_ir'"):
        child(folder, 'extends = "parent"\nname = "Child"\nverified = "fixture"\n')


def test_a_longer_circle_is_shown_whole(folder: Path) -> None:
    (folder / "b.toml").write_text('extends = "child"\n')
    with pytest.raises(InvalidFileError, match=r"b\.toml.*child -> b -> child"):
        child(folder, 'extends = "b"\n')


def test_a_missing_key_is_named(folder: Path) -> None:
    (folder / "alone.toml").write_text(PARENT.replace("max_ir = 8\n", ""))
    with pytest.raises(InvalidFileError, match=r"alone\.toml: .*`max_ir`"):
        read_profile("alone", folder)


def test_only_a_cpu_that_is_emulated_says_so() -> None:
    """tests/test_emulator.py runs every profile that says `emulated`."""
    for profile in map(load_profile, profile_ids()):
        if profile.verified == "emulated":
            assert profile.qemu_cpu, profile.id
            assert not profile.accelerators, profile.id
            assert not profile.withdrawn, profile.id
