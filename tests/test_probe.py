"""Runtimes that are installed and broken: really broken packages, tried by real children."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit.choose import InstalledRuntimes, choose
from edgekit.devices import load_profile
from edgekit.errors import UnavailableError, UsageError
from edgekit.probe import Finding, probe, runtime_key
from edgekit.probe_child import MODELS, STEPS, expected, model_files
from edgekit.process import python_command
from edgekit.runtimes import RUNTIMES, get_runtime
from tests.broken_runtimes import BROKEN, put_broken
from tests.runtimes.bundles import write_tiny
from tests.runtimes.cases import ARTIFACTS, ENGINES, runtime_or_skip
from tests.runtimes.make_artifacts import Weights

pytestmark = pytest.mark.device


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(
        "PYTHONDONTWRITEBYTECODE", raising=False
    )  # as on a device: an import writes beside its package


@pytest.fixture(name="broken")
def _broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Put a broken onnxruntime in front of the real one; give its way to break."""
    monkeypatch.syspath_prepend(put_broken(tmp_path / "in-front", request.param))
    return str(request.param)


def kept_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "edgekit" / "probes").glob("*.json"))


@pytest.mark.parametrize("name", ENGINES)
def test_a_sound_runtime_is_found_sound_and_is_not_tried_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtime_or_skip(name)
    assert probe(name) == Finding(runtime.version(), runtime.providers())
    assert len(kept_files(tmp_path)) == 1
    monkeypatch.setattr("edgekit.probe_run.ask", lambda *_: pytest.fail("tried again"))
    assert probe(name) == Finding(runtime.version(), runtime.providers())


@pytest.mark.parametrize("broken", BROKEN, indirect=True)
def test_a_broken_runtime_says_how_and_leaves_the_others(broken: str, tmp_path: Path) -> None:
    bundle = write_tiny(tmp_path / "bundle", ("tflite-fp32", "onnx-fp32", "openvino-fp32"))
    found = InstalledRuntimes(
        tuple(RUNTIMES), lambda name: probe(name, timeout_s=5.0 if broken == "hang" else 60.0)
    )
    assert "onnxruntime" not in found
    problem = found.problems["onnxruntime"]
    assert BROKEN[broken][1] in problem.why
    assert not problem.missing
    x86 = load_profile("x86-64")
    with pytest.raises(UnavailableError) as caught:
        choose(x86, bundle.manifest, found, runtime="onnxruntime", forced=True)
    assert BROKEN[broken][1] in str(caught.value)
    for name in filter(_is_installed, ("litert", "openvino")):  # the broken one is not imported here
        assert found[name].version
        assert choose(x86, bundle.manifest, found, runtime=name).runtime == name


def _is_installed(name: str) -> bool:
    try:
        return bool(get_runtime(name).version())
    except UnavailableError:
        return False


@pytest.mark.parametrize("broken", ["segfault in a session"], indirect=True)
def test_every_command_goes_on_with_what_works(broken: str, tmp_path: Path) -> None:
    runtime_or_skip("litert")
    write_tiny(tmp_path / "bundle", ("tflite-fp32", "onnx-fp32"), verdicts={"tflite-fp32": "unproven"})
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8, 1), np.float32))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path / "in-front"), *sys.path))}

    def edgekit(*words: str) -> subprocess.CompletedProcess[str]:
        command = python_command("-m", "edgekit", *words)
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300, check=False
        )

    done = edgekit("run", "bundle", "x.npy", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert plan["runtime"] == "litert"
    why = "onnxruntime is installed but broken (it was killed by SIGSEGV while it opened a model): stepping down"
    assert why in plan["reasons"]
    done = edgekit("run", "bundle", "x.npy", "--runtime", "onnxruntime")
    assert done.returncode == 5
    assert "was killed by SIGSEGV while it opened a model" in done.stderr
    assert "edgekit doctor" in done.stderr
    assert not list(tmp_path.rglob("core*"))


def test_a_pinned_plan_whose_runtime_has_broken_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.detect import detect
    from edgekit.local import open_here
    from edgekit.manifest import Plan
    from edgekit.pins import Pin, write_pin

    runtime_or_skip("litert")
    bundle = write_tiny(tmp_path / "bundle", ("tflite-fp32", "onnx-fp32"))
    here = detect().profile_id
    pin = Pin(1, bundle.digest, here, Plan(here, "onnx-fp32", "onnxruntime"), 0.034, "0.1.0")
    write_pin(pin, tmp_path / "state")
    monkeypatch.syspath_prepend(put_broken(tmp_path / "in-front", "segfault"))
    plan, _ = open_here(bundle, lambda _bundle, _plan: None, state_dir=tmp_path / "state")
    assert plan.runtime == "litert"
    assert plan.reasons[0] == (
        "the pinned plan does not start any more: it was killed by SIGSEGV while it was imported"
    )


def test_what_is_not_installed_is_missing_and_starts_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    for package in get_runtime("openvino").packages:
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr("edgekit.probe_run.ask", lambda *_: pytest.fail("a child for nothing"))
    assert runtime_key("openvino") == ""
    found = probe("openvino")
    assert found.missing
    assert found.problem == (
        "the runtime openvino is not installed. Run: pip install 'edgekit-deploy[openvino]'."
    )


def test_null_needs_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.probe_run.ask", lambda *_: pytest.fail("a child for nothing"))
    assert probe("null") == Finding("null 1", ("CPU",))
    with pytest.raises(UsageError, match="unknown runtime"):
        probe("tensorrt")


@pytest.mark.parametrize("broken", ["segfault"], indirect=True)
def test_what_is_broken_is_remembered_for_ten_minutes(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = probe("onnxruntime", now=lambda: 1000.0)
    assert "SIGSEGV" in first.problem
    tries = []

    def ask(name: str, _timeout_s: float) -> Finding:
        tries.append(name)
        return Finding("onnxruntime 1.31.1", ("CPUExecutionProvider",))

    monkeypatch.setattr("edgekit.probe_run.ask", ask)
    assert probe("onnxruntime", now=lambda: 1599.0) == first
    assert tries == []
    assert probe("onnxruntime", now=lambda: 1600.0).version == "onnxruntime 1.31.1"
    assert probe("onnxruntime", now=lambda: 9e9).version == "onnxruntime 1.31.1"
    assert tries == ["onnxruntime"]
    assert probe("onnxruntime", fresh=True).version == "onnxruntime 1.31.1"
    assert tries == ["onnxruntime"] * 2


def test_a_service_keeps_its_findings_in_its_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime_or_skip("litert")
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    for variable in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, "/proc/nothing")
    assert probe("litert").version
    assert len(list((tmp_path / "state" / "probes").iterdir())) == 1


def test_where_nothing_can_be_kept_it_is_tried_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime_or_skip("litert")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    assert probe("litert").version
    assert probe("litert").version


@pytest.mark.parametrize("broken", ["import error"], indirect=True)
def test_a_clock_that_went_back_does_not_keep_a_fault(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probe("onnxruntime", now=lambda: 9e8)
    monkeypatch.setattr("edgekit.probe_run.ask", lambda *_: Finding("onnxruntime 1.31.1"))
    assert probe("onnxruntime", now=lambda: 1000.0).version


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": 1, "key": 3}', "\0"])
def test_a_damaged_memory_is_no_memory(text: str, tmp_path: Path) -> None:
    runtime_or_skip("litert")
    first = probe("litert")
    (file,) = kept_files(tmp_path)
    file.write_text(text)
    assert probe("litert") == first
    assert msgspec.json.decode(file.read_bytes())["schema"] == 1


def test_the_memory_of_another_version_machine_or_library_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = put_broken(tmp_path / "in-front", "segfault") / "onnxruntime" / "__init__.py"
    monkeypatch.syspath_prepend(tmp_path / "in-front")
    keys = {runtime_key("onnxruntime")}
    (tmp_path / "in-front" / "onnxruntime-1.31.1.dist-info").mkdir()
    keys.add(runtime_key("onnxruntime"))
    os.utime(package, (1, 1))
    keys.add(runtime_key("onnxruntime"))
    for variable in ("LD_LIBRARY_PATH", "EDGEKIT_LAUNCHER"):
        monkeypatch.setenv(variable, "/somewhere")
        keys.add(runtime_key("onnxruntime"))
    assert len(keys) == 5
    assert runtime_key("onnxruntime") in keys
    assert runtime_key("onnxruntime") != runtime_key("litert")


def test_where_no_child_can_be_started_nothing_speaks_against_a_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime_or_skip("litert")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    assert probe("litert") == Finding()
    monkeypatch.setattr(sys, "executable", "")
    assert probe("litert") == Finding()
    assert kept_files(tmp_path) == []


def test_a_library_that_prints_without_end_is_heard_to_its_end_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put_broken(tmp_path / "in-front", "hang") / "onnxruntime"
    (folder / "__init__.py").write_text("while True: print('noise' * 1000)\n")
    monkeypatch.syspath_prepend(tmp_path / "in-front")
    begin = time.monotonic()
    assert "gave no answer within 3 s" in probe("onnxruntime", timeout_s=3.0).problem
    assert time.monotonic() - begin < 30


def test_a_child_of_the_child_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put_broken(tmp_path / "in-front", "segfault") / "onnxruntime"
    (folder / "__init__.py").write_text(
        "import os, time\nif os.fork() == 0:\n    time.sleep(600)\nos.kill(os.getpid(), 6)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "in-front")
    begin = time.monotonic()
    assert probe("onnxruntime").problem == "it was killed by SIGABRT while it was imported"
    assert time.monotonic() - begin < 30


def test_the_tiny_models_are_those_of_the_tests() -> None:
    room = Path(import_module("edgekit.runtimes").__file__ or "").parent
    for own, committed in (
        ("tflite", "tiny_fp32.tflite"),
        ("onnx", "tiny.onnx"),
        ("xml", "tiny.xml"),
        ("bin", "tiny.bin"),
    ):
        assert (room / f"probe.{own}").read_bytes() == (ARTIFACTS / committed).read_bytes()
    ramp = (np.arange(64, dtype=np.float32) / 64).reshape(1, 8, 8, 1)
    assert expected(Weights().forward(ramp))
    assert not expected(Weights().forward(ramp) + np.float32(0.01))
    assert not expected(np.full((1, 4), np.nan, np.float32))
    assert len(STEPS) == len(set(STEPS))
    for name in ENGINES:
        form = get_runtime(name).formats[0]
        assert model_files(form).path.name == MODELS[form]
