"""The target's instruction set by emulation: prepared once, and what passes here and fails there is caught."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx

from edgekit import emulator as emulation
from edgekit.cli import COMMANDS
from edgekit.devices import load_profile, profile_ids
from edgekit.emulator import create, emulator_folder, emulator_of, is_ready
from edgekit.errors import MachineError, UnavailableError, UsageError
from edgekit.verify import prove_emulated
from edgekit.wheels import DeviceSystem, download
from tests.conversions import converted_twice, data_options, run_main
from tests.corpus import reference_cnn
from tests.emulation import prepared

pytestmark = pytest.mark.convert

PI = load_profile("raspberry-pi-4")


@pytest.fixture(scope="module", name="prepared")
def _prepared() -> Iterator[Path]:
    with prepared() as folder:
        yield folder


# Preparing


def test_it_holds_what_a_device_has(prepared: Path) -> None:
    contents = create(mirror="http://127.0.0.1:9/debian")  # nothing is fetched again
    assert contents.versions["python"].startswith("3.11.")
    assert {"onnxruntime", "ai-edge-litert", "msgspec", "uvloop", "cryptography"} <= set(contents.versions)
    from importlib.metadata import version

    assert contents.versions["onnxruntime"] == version("onnxruntime"), (
        "the wheels are of this machine's versions"
    )
    machine = emulator_of(PI).run("-c", "import platform; print(platform.machine())")
    assert machine.stdout.strip() == "aarch64", machine.stderr


def test_what_was_done_is_not_done_again(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("qemu", "root"):
        shutil.copytree(prepared / name, emulator_folder() / name, symlinks=True)
    (emulator_folder() / ".wheels-half").mkdir()
    steps: list[str] = []

    def stop(_out: Path) -> None:
        raise MachineError("the line is down")

    monkeypatch.setattr(emulation, "_install_wheels", stop)
    with pytest.raises(MachineError, match="the line is down"):
        create(lambda what, _done, _all: steps.append(what), mirror="http://127.0.0.1:9/debian")
    assert not is_ready()
    monkeypatch.setattr(emulation, "_install_wheels", lambda out: (out / "x").touch())
    assert create(mirror="http://127.0.0.1:9/debian").versions["qemu-user"].startswith("10.")
    assert is_ready()
    assert steps[-1] == "preparing the emulator: wheels"


def test_a_mirror_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MachineError, match=r"fetching from Debian trixie.* failed: .*Run the command again"):
        create(mirror="http://127.0.0.1:9/debian")
    assert not is_ready()
    assert not [p for p in emulator_folder().iterdir() if p.name == "qemu"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", "# old\ndeb [arch=amd64] http://mirror.example/debian bookworm main\n"),
        (
            "sources.list.d/debian.sources",
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n",
        ),
        (
            "sources.list.d/b.list",
            "deb http://packages.example/other stable main\ndeb http://mirror.example/debian/ x main",
        ),
    ],
)
def test_the_mirror_is_the_machines_own(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text)
    assert emulation._own_mirror(tmp_path).rstrip("/") == "http://mirror.example/debian"


def test_without_a_mirror_one_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://archive.example/ubuntu noble main\n")
    with pytest.raises(UnavailableError, match=r"name no Debian mirror.*--mirror"):
        emulation._own_mirror(tmp_path)


@pytest.mark.parametrize("tool", ["apt-get", "dpkg"])
def test_another_system_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tool: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        "edgekit.emulator.shutil.which", lambda name: None if name == tool else f"/usr/bin/{name}"
    )
    with pytest.raises(UnavailableError, match=f"{tool} is not here.*Debian or Ubuntu"):
        create()


def test_what_cannot_be_emulated_or_is_not_prepared_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"jetson cannot be emulated.*raspberry-pi-4"):
        emulator_of(load_profile("jetson"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        UnavailableError, match=r"not been prepared here\. Prepare it: edgekit env create emulator"
    ):
        emulator_of(PI)


def test_the_commands_list_create_and_remove(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "env" in COMMANDS
    listed = json.loads(run_main(["env", "list", "--json"], capsys).out)["emulator"]
    assert listed["ready"]
    assert listed["devices"]["raspberry-pi-5"] == "cortex-a76"
    made = json.loads(run_main(["env", "create", "emulator", "--json"], capsys).out)
    assert made["folder"] == str(prepared)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "not prepared" in run_main(["env", "list"], capsys).out
    assert run_main(["env", "remove", "emulator"], capsys).out == "there was none\n"
    (emulator_folder() / "x").mkdir(parents=True)
    assert run_main(["env", "remove", "emulator"], capsys).out == f"removed {emulator_folder()}\n"
    assert not emulator_folder().exists()


# Proving


#: What a profile that says `emulated` promises: these very runs, in every runtime that it lists.
EMULATED = [
    (profile.id, each.runtime)
    for profile in map(load_profile, profile_ids())
    if profile.verified == "emulated"
    for each in profile.runtimes
]


def test_what_says_emulated_is_what_runs_below() -> None:
    assert {device for device, _ in EMULATED} == {"raspberry-pi-4", "raspberry-pi-5"}
    assert {runtime for _, runtime in EMULATED} == {"litert", "onnxruntime"}


@pytest.mark.parametrize(("device", "runtime"), EMULATED)
def test_a_bundle_keeps_its_accuracy_under_the_targets_cpu(
    prepared: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, device: str, runtime: str
) -> None:
    profile = load_profile(device)
    first = profile.runtimes[0].runtime == runtime
    bundle = tmp_path / "digits"
    shutil.copytree(converted_twice("raspberry-pi-4")[0].root, bundle)
    words = ["verify", bundle, "--emulate", device, "--eval", reference_cnn().evaluation, "--json"]
    said = run_main(words if first else [*words, "--runtime", runtime], capsys)
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["golden"]["passed"]
    assert (found["plan"]["device"], found["plan"]["runtime"]) == (device, runtime)
    assert found["plan"]["artifact"] == {"litert": "tflite-int8", "onnxruntime": "onnx-int8"}[runtime]
    metric = found["emulated"]["gate"]["metric"]
    assert metric["n"] == 1000
    assert metric["bound_pp"] <= 1.0
    assert abs(metric["artifact"] - metric["source"]) < 0.005
    kept = json.loads((tmp_path / "digits.report" / f"emulated-{device}.json").read_text())
    assert re.fullmatch(rf"qemu 10\.\d+\.\d+, {profile.qemu_cpu}", kept["emulator"])
    assert kept["digest"] == found["digest"]
    assert kept["gate"]["verdict"] == "accepted"


def test_a_conversion_is_judged_under_the_targets_cpu(
    prepared: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [
        "convert",
        reference_cnn().model,
        "-t",
        "raspberry-pi-5",
        "--prove",
        "emulated",
        "-o",
        tmp_path / "out",
    ]
    said = run_main([*words, "--format", "onnx", "--precision", "int8", *data_options()], capsys)
    assert said.code == 0, said.err
    assert "onnx-int8 was judged on aarch64+asimddp, emulated (qemu " in said.out
    artifact = json.loads((tmp_path / "out" / "manifest.json").read_text())["artifacts"]["onnx-int8"]
    assert artifact["isa"] == "aarch64+asimddp"
    assert artifact["emulator"].endswith("cortex-a76")
    assert artifact["gate"]["metric"]["n"] == 1000
    (row,) = json.loads((tmp_path / "out.report" / "report.json").read_text())["artifacts"]
    assert row["p50_ms"] is None, "an emulated time says nothing"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--eval", "e.npz"], "--eval has no meaning here: expected --emulate with it"),
        (
            ["--emulate", "raspberry-pi-4", "--max-drop", "1"],
            "--max-drop has no meaning here: expected --eval with it",
        ),
        (["--emulate", "raspberry-pi-4", "--device", "jetson"], "--device has no meaning with --emulate"),
        (
            ["--hashes-only", "--emulate", "raspberry-pi-4"],
            "--hashes-only runs nothing, so --emulate has no meaning",
        ),
        (["--emulate", "raspberry-pi-6"], "unknown device 'raspberry-pi-6'"),
        (["--emulate", "jetson"], "jetson cannot be emulated"),
    ],
)
def test_options_that_would_be_ignored_are_errors(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    found = run_main(["verify", converted_twice("raspberry-pi-4")[0].root, *words], capsys)
    assert found.code == 2
    assert said in found.line


# Faults that pass here


def saturating(folder: Path) -> Path:
    """Write an integer ONNX whose u8 x s8 products overflow sixteen bits where two of them are added in those."""
    n, helper = 64, onnx.helper
    weights = np.full((n, 8), 127, np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    constants = {"w": weights, "scale": np.float32(1.0), "zero": np.uint8(0)}
    graph = helper.make_graph(
        nodes,
        "saturating",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, n])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 8])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def run_under(profile_id: str, script: str) -> Any:
    done = emulator_of(load_profile(profile_id)).run("-c", script)
    return done, (json.loads(done.stdout) if done.returncode == 0 else None)


RUN = """
import json, sys, numpy, onnxruntime
session = onnxruntime.InferenceSession({path!r}, providers=["CPUExecutionProvider"])
print(json.dumps(session.run(None, {{"x": numpy.full((1, 64), 255, "f")}})[0].ravel().tolist()))
"""


def test_products_that_saturate_without_vnni_show_only_there(prepared: Path, tmp_path: Path) -> None:
    path = saturating(tmp_path)
    right = 255 * 127 * 64
    for profile_id, exact in (("x86-64-avx2", False), ("raspberry-pi-4", True)):
        done, values = run_under(profile_id, RUN.format(path=str(path)))
        assert values is not None, done.stderr
        assert (values == [right] * 8) == exact, (profile_id, values)


#: `sdot v0.4s, v1.16b, v2.16b`, which came with Armv8.2's dot product, then `ret`.
SDOT = "import ctypes, mmap; m = mmap.mmap(-1, 4096, prot=7); m.write(bytes.fromhex('2094824ec0035fd6')); "
SDOT += "ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"


def test_an_instruction_that_the_cpu_lacks_shows_only_there(prepared: Path, tmp_path: Path) -> None:
    """A wheel built for another core imports on the build host's kind and dies on the device."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(SDOT + "\n__version__ = '1.31.1'\n")
    probe = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import onnxruntime; print('loaded')"
    newer = emulator_of(load_profile("raspberry-pi-5")).run("-c", probe)
    assert newer.stdout.strip() == "loaded", newer.stderr
    older = emulator_of(PI).run("-c", probe)
    assert older.returncode == -signal.SIGILL
    emulator = emulator_of(PI)
    paths = os.pathsep.join([str(tmp_path), emulator.interpreter.environment["PYTHONPATH"]])
    interpreter = replace(
        emulator.interpreter, environment={**emulator.interpreter.environment, "PYTHONPATH": paths}
    )
    proof = replace(emulator, interpreter=interpreter)
    with pytest.raises((MachineError, UnavailableError), match="under qemu"):
        prove_emulated(converted_twice("raspberry-pi-4")[0], proof, runtime="onnxruntime")


@pytest.mark.parametrize(
    ("system", "wanted"),
    [
        (DeviceSystem("aarch64", "2.31"), "openvino==2026.4.1"),  # JetPack 5: its wheel wants glibc 2.35
        (DeviceSystem("armv7l", "2.36"), "onnxruntime==1.31.1"),  # a 32-bit Raspberry Pi OS: there is none
        (DeviceSystem("aarch64", "2.36", "3.8"), "onnxruntime==1.31.1"),  # JetPack 5's own Python
    ],
    ids=["too old a glibc", "no wheel for the platform", "too old a Python"],
)
def test_a_wheel_that_the_device_cannot_load_is_told(
    tmp_path: Path, system: DeviceSystem, wanted: str
) -> None:
    with pytest.raises(UnavailableError, match=f"there is no wheel of {wanted} for {system}"):
        download(system, [wanted], tmp_path)
    assert download(DeviceSystem("aarch64", "2.36"), [wanted], tmp_path)


def test_the_tags_are_those_of_pep_600() -> None:
    tags = DeviceSystem("aarch64", "2.28").tags()
    assert tags[0] == "manylinux_2_28_aarch64"
    assert tags[-2:] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64"]
    assert "manylinux_2_31_aarch64" not in tags
    assert DeviceSystem("x86_64", "2.31").tags()[-1] == "manylinux1_x86_64"


def test_an_opset_newer_than_the_targets_runtime_is_caught_before_any_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs here, by this machine's newer ONNX Runtime; the target's reads opset 13."""
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Gelu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "new", [value("x", 1, [1, 4])], [value("y", 1, [1, 4])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, tmp_path / "new.onnx")
    words = ["convert", tmp_path / "new.onnx", "-t", "jetson-nano", "--format", "onnx", "--precision", "fp32"]
    said = run_main([*words, "-o", tmp_path / "out"], capsys)
    assert said.code == 3
    assert "has no form that the target's runtime reads" in said.line
    assert "got opset 20, expected at most opset 13" in said.line
