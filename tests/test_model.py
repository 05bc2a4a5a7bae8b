from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import edgekit
from edgekit.bundle import Bundle, open_bundle, pack, slice_bundle
from edgekit.errors import InvalidFileError, MachineError, RefusedError, UnavailableError, UsageError
from edgekit.model import BOOT_SAMPLES, Model, monitor_for, start
from edgekit.monitor.outbox import Outbox
from edgekit.monitor.schema import WindowReport
from edgekit.runtimes import RUNTIMES, ModelFiles, SessionOptions
from edgekit.runtimes.null import Null, NullSession
from edgekit.state import open_state
from tests.runtimes.bundles import write_tiny
from tests.runtimes.cases import ENGINES, golden, runtime_or_skip

pytestmark = pytest.mark.device

ROOT = Path(__file__).parents[1]


@pytest.fixture(name="bundle", scope="module")
def _bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(name="null_model")
def _null_model(bundle: Bundle, tmp_path: Path) -> Iterator[Model]:
    with edgekit.load(bundle, runtime="null", state_dir=tmp_path) as model:
        yield model


def windows(state_dir: Path) -> list[WindowReport]:
    """Return the reports that wait for the agent."""
    with Outbox(open_state(state_dir).outbox) as outbox:
        return [msgspec.json.decode(body, type=WindowReport) for _, _, body in outbox.read()]


class Flaky(Null):
    """A runtime whose device is listed but fails: at load (`dead`), or in every second run (`shaky`)."""

    def providers(self) -> tuple[str, ...]:
        return ("dead", "shaky", "CPU")

    def load(self, files: ModelFiles, options: SessionOptions) -> FlakySession | NullSession:
        if options.providers and options.providers[0] == "dead":
            raise UnavailableError("libdead.so is missing")
        session = super().load(files, SessionOptions())
        assert isinstance(session, NullSession)
        if options.providers and options.providers[0] == "shaky":
            return FlakySession(files, session._golden)
        return session


class FlakySession(NullSession):
    calls = 0

    def _run(self, feed: Any) -> dict[str, np.ndarray]:
        self.calls += 1
        if self.calls > 3 + BOOT_SAMPLES and self.calls % 2:
            raise RuntimeError("device lost")
        return super()._run(feed)


# What a model answers


@pytest.mark.parametrize("runtime", [*ENGINES, "null"])
def test_predict_gives_what_the_weights_say(runtime: str, bundle: Bundle, tmp_path: Path) -> None:
    runtime_or_skip(runtime)
    images, expected = golden()
    with edgekit.load(bundle, runtime=runtime, state_dir=tmp_path) as model:
        assert model.plan.runtime == runtime
        got = model.predict(images)
        assert isinstance(got, np.ndarray)
        np.testing.assert_allclose(got, expected, atol=0.02)


def test_the_detected_device_is_planned_for(bundle: Bundle) -> None:
    from edgekit.detect import detect

    if not any(name in edgekit_installed() for name in ENGINES):
        pytest.skip("needs one of edgekit-deploy[tflite], [onnx], [openvino]")
    with edgekit.load(bundle, monitor=False) as model:
        assert model.plan.device == detect().profile_id
        assert model.plan.reasons


def edgekit_installed() -> Any:
    from edgekit.choose import installed_runtimes

    return installed_runtimes()


def test_it_carries_what_the_daemon_shows(null_model: Model, bundle: Bundle) -> None:
    assert (null_model.name, null_model.version, null_model.digest) == ("tiny", 3, bundle.digest)
    assert null_model.manifest == bundle.manifest
    assert null_model.inputs == bundle.manifest.inputs
    assert null_model.outputs == bundle.manifest.outputs


def test_a_mapping_gives_a_mapping(null_model: Model) -> None:
    images, expected = golden()
    got = null_model.predict({"image": images})
    assert list(got) == ["probabilities"]
    np.testing.assert_array_equal(got["probabilities"], expected)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[0.0]], "tiny cannot take this: got list, expected an array for image"),
        (None, "got NoneType"),
        (np.zeros((1, 8, 8, 1)), "wrong dtype: got float64"),
        (np.zeros((8, 8, 1), np.float32), "wrong shape"),
        ({"picture": np.zeros((1, 8, 8, 1), np.float32)}, "'image' is missing"),
    ],
)
def test_what_does_not_fit_is_named(null_model: Model, x: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        null_model.predict(x)


@pytest.mark.parametrize("runtime", [*ENGINES, "null"])
def test_a_prediction_may_be_kept(runtime: str, bundle: Bundle) -> None:
    runtime_or_skip(runtime)
    images, expected = golden()
    with edgekit.load(bundle, runtime=runtime, monitor=False) as model:
        kept = [model.predict(images[i : i + 1]) for i in range(8)]
        np.testing.assert_allclose(np.concatenate([np.asarray(k) for k in kept]), expected, atol=0.02)


@pytest.mark.parametrize("runtime", [*ENGINES, "null"])
def test_threads_take_turns(runtime: str, bundle: Bundle, tmp_path: Path) -> None:
    runtime_or_skip(runtime)
    images, expected = golden()
    wrong: list[int] = []
    with edgekit.load(bundle, runtime=runtime, state_dir=tmp_path) as model:

        def work(row: int) -> None:
            for _ in range(50):
                got = model.predict(images[row : row + 1])
                if not np.allclose(np.asarray(got), expected[row : row + 1], atol=0.02):
                    wrong.append(row)

        threads = [threading.Thread(target=work, args=(row,)) for row in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert sum(report.n for report in windows(tmp_path)) == 300


def test_a_closed_model_says_so_and_closing_twice_is_nothing(bundle: Bundle) -> None:
    model = edgekit.load(bundle, runtime="null", monitor=False)
    model.close()
    model.close()
    with pytest.raises(UsageError, match="the model is closed"):
        model.predict(golden()[0])


@pytest.mark.parametrize("runtime", [name for name in ENGINES if name != "onnxruntime"])
def test_threads_by_hand_are_in_the_plan(runtime: str, bundle: Bundle) -> None:
    runtime_or_skip(runtime)
    with edgekit.load(bundle, runtime=runtime, threads=2, monitor=False) as model:
        assert model.plan.threads == 2
    for threads in (0, 257):
        with pytest.raises(UsageError, match="no such number of threads"):
            edgekit.load(bundle, runtime="null", monitor=False, threads=threads)


def test_a_fallback_from_nothing_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="--allow-fallback has no meaning"):
        edgekit.load(bundle, monitor=False, allow_fallback=True)


# What may be loaded


def test_a_folder_an_archive_and_a_slice_load_alike(bundle: Bundle, tmp_path: Path) -> None:
    images, expected = golden()
    archive = pack(bundle, tmp_path / "tiny.edgekit", overwrite=False)
    piece = slice_bundle(bundle, ["tflite-int8"], tmp_path / "piece", overwrite=False)
    for given in (bundle.root, str(bundle.root), archive, piece):
        with edgekit.load(given, runtime="null", monitor=False) as model:
            assert model.digest == bundle.digest
            np.testing.assert_array_equal(model.predict(images), expected)


def test_a_flipped_byte_in_any_file_is_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    names = [*sorted(bundle.manifest.files), "manifest.json", "manifest.sha256"]
    assert len(names) >= 8
    for name in names:
        copy = tmp_path / "copy"
        shutil.copytree(bundle.root, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 4
        (copy / name).write_bytes(data)
        with pytest.raises(InvalidFileError, match="manifest" if "manifest" in name else name):
            edgekit.load(copy, runtime="null", monitor=False)
        shutil.rmtree(copy)


@pytest.mark.parametrize("runtime", [*ENGINES, "null"])
def test_wrong_golden_outputs_refuse_the_model_except_where_nothing_runs(
    runtime: str, tmp_path: Path
) -> None:
    runtime_or_skip(runtime)
    _, expected = golden()
    bundle = write_tiny(tmp_path / "tiny", outputs=np.roll(expected, 1, axis=1))
    if runtime == "null":  # it answers the golden outputs, whatever they are
        edgekit.load(bundle, runtime=runtime, monitor=False).close()
        return
    with pytest.raises(RefusedError, match=f"tiny 3 failed its golden self-test.*{runtime}"):
        edgekit.load(bundle, runtime=runtime, monitor=False)


def test_a_bundle_without_a_tolerance_is_not_trusted(tmp_path: Path) -> None:
    from edgekit.manifest import Golden

    bundle = write_tiny(tmp_path / "tiny", golden=Golden(8, "real", {}))
    with pytest.raises(InvalidFileError, match="no golden tolerance"):
        edgekit.load(bundle, runtime="null", monitor=False)


def test_the_whole_golden_set_may_be_run_later(null_model: Model) -> None:
    outcome = null_model.golden_test(None)
    assert (outcome.passed, outcome.n) == (True, 8)
    assert null_model.golden_test(4).n == 4


def test_an_unproven_artifact_gives_way_unless_allowed(tmp_path: Path) -> None:
    runtime_or_skip("litert")
    verdicts = {"tflite-int8": "unproven"}
    bundle = write_tiny(tmp_path / "tiny", ("tflite-fp32", "tflite-int8"), verdicts=verdicts)
    with edgekit.load(bundle, device="raspberry-pi-4", monitor=False) as model:
        assert model.plan.artifact == "tflite-fp32"
    with edgekit.load(bundle, device="raspberry-pi-4", monitor=False, allow_unproven=True) as model:
        assert model.plan.artifact == "tflite-int8"


def test_a_device_whose_provider_is_absent_is_unavailable_unless_fallback_is_allowed(bundle: Bundle) -> None:
    runtime = runtime_or_skip("onnxruntime")
    if "TensorrtExecutionProvider" in runtime.providers():
        pytest.skip("this machine has TensorRT")
    with pytest.raises(UnavailableError, match="TensorrtExecutionProvider"):
        edgekit.load(bundle, device="jetson-orin-nano", monitor=False)
    with edgekit.load(bundle, device="jetson-orin-nano", monitor=False, allow_fallback=True) as model:
        assert any("TensorrtExecutionProvider" in reason for reason in model.plan.reasons)
        assert "CPUExecutionProvider" in model.session.placement


# A provider that is listed but does not start


@pytest.fixture(name="flaky_profile")
def _flaky_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the flaky runtime, and make it what every device prefers."""
    from edgekit.detect import detect
    from edgekit.devices import RuntimePreference, load_profile

    monkeypatch.setitem(RUNTIMES, "null", "tests.test_model:Flaky")
    preference = RuntimePreference("null", ("fp32",), ("dead", "CPU"))

    def flaky(profile: Any) -> Any:
        return msgspec.structs.replace(profile, runtimes=(preference,))

    class Detected:
        def profile(self) -> Any:
            return flaky(detect().profile())

    monkeypatch.setattr("edgekit.local.load_profile", lambda name: flaky(load_profile(name)))
    monkeypatch.setattr("edgekit.local.detect", Detected)


@pytest.mark.usefixtures("flaky_profile")
def test_a_listed_provider_that_does_not_start_gives_way_with_a_reason(bundle: Bundle) -> None:
    with edgekit.load(bundle, monitor=False) as model:
        assert model.plan.providers == ("CPU",)
        assert "null on dead did not start: libdead.so is missing" in model.plan.reasons


@pytest.mark.usefixtures("flaky_profile")
def test_a_forced_plan_does_not_give_way_unless_allowed(bundle: Bundle) -> None:
    with pytest.raises(UnavailableError, match=r"libdead\.so"):
        edgekit.load(bundle, device="raspberry-pi-4", monitor=False)
    with edgekit.load(bundle, device="raspberry-pi-4", monitor=False, allow_fallback=True) as model:
        assert model.plan.providers == ("CPU",)


# What is recorded


def test_every_answer_is_in_one_window_and_preparation_is_in_none(bundle: Bundle, tmp_path: Path) -> None:
    images, _ = golden()
    with edgekit.load(bundle, runtime="null", state_dir=tmp_path) as model:
        model.predict(images[:1])
        model.predict(images[:4])
        model.golden_test()
        model.warm_up()
    (report,) = windows(tmp_path)
    assert (report.n, report.calls, report.errors) == (5, 2, 0)
    assert (report.model, report.version, report.digest) == ("tiny", 3, bundle.digest)
    assert (report.artifact, report.runtime) == (model.plan.artifact, "null")
    assert sum(report.classes) == 5
    assert sum(report.confidence) == 5
    assert report.accuracy is not None


def test_a_bad_feed_is_no_error_of_the_model(bundle: Bundle, tmp_path: Path) -> None:
    with edgekit.load(bundle, runtime="null", state_dir=tmp_path) as model, pytest.raises(UsageError):
        model.predict(np.zeros(3, np.float32))
    (report,) = windows(tmp_path)
    assert (report.n, report.errors) == (0, 0)


def test_a_failing_runtime_is_counted_and_told(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNTIMES, "null", "tests.test_model:Flaky")
    images, _ = golden()
    with edgekit.load(bundle, runtime="null", monitor=False) as planned:
        plan = msgspec.structs.replace(planned.plan, providers=("shaky",))
    model = start(bundle, plan)
    model.monitor = monitor_for(bundle, plan)
    failures = 0
    for _ in range(10):
        try:
            model.predict(images[:1])
        except MachineError as error:
            failures += 1
            assert "device lost" in str(error)  # noqa: PT017  which calls fail is the session's matter
    totals = model.monitor.totals()
    assert (failures, totals.errors, totals.n) == (5, 5, 5)
    model.close()


def test_without_a_monitor_nothing_is_written(bundle: Bundle, tmp_path: Path) -> None:
    with edgekit.load(bundle, runtime="null", state_dir=tmp_path, monitor=False) as model:
        model.predict(golden()[0])
        assert model.monitor is None
    assert not open_state(tmp_path).outbox.exists()


def test_a_forgotten_model_stores_its_window(bundle: Bundle, tmp_path: Path) -> None:
    model = edgekit.load(bundle, runtime="null", state_dir=tmp_path)
    model.predict(golden()[0])
    del model
    gc.collect()
    (report,) = windows(tmp_path)
    assert report.n == 8


def test_a_program_that_never_closes_stores_its_window_at_exit(bundle: Bundle, tmp_path: Path) -> None:
    script = (
        "import sys, edgekit\nfrom tests.runtimes.cases import golden\n"
        "m = edgekit.load(sys.argv[1], runtime='null', state_dir=sys.argv[2])\nm.predict(golden()[0])\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(bundle.root), str(tmp_path)], check=True, cwd=ROOT, timeout=60
    )
    (report,) = windows(tmp_path)
    assert report.n == 8


@pytest.mark.parametrize(
    "runtime", [name for name in ENGINES if name != "onnxruntime"]
)  # it waits at exit by itself
def test_a_model_loaded_before_a_fork_is_the_parents(runtime: str, bundle: Bundle, tmp_path: Path) -> None:
    runtime_or_skip(runtime)
    code = f"""
import os, sys, warnings
import numpy as np
import edgekit
warnings.simplefilter("ignore")
x = np.zeros((1, 8, 8, 1), np.float32)
model = edgekit.load({str(bundle.root)!r}, runtime={runtime!r}, state_dir={str(tmp_path)!r})
model.predict(x)
child = os.fork()
if child == 0:
    try:
        model.predict(x)
    except edgekit.errors.UsageError as error:
        print(error, flush=True)
    model.close()
    own = edgekit.load({str(bundle.root)!r}, runtime={runtime!r}, state_dir={str(tmp_path)!r})
    own.predict(x), own.predict(x)
    sys.exit()
print("child", os.waitpid(child, 0)[1], flush=True)
model.predict(x)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Load it in the child" in done.stdout
    assert "child 0" in done.stdout
    assert "Error" not in done.stderr
    assert sorted(window.n for window in windows(tmp_path)) == [2, 2]
    with Outbox(open_state(tmp_path).outbox) as outbox:
        assert outbox.lost() == 0


def test_a_state_folder_that_cannot_be_made_is_told(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"cannot make the state folder .*--state-dir"):
        edgekit.load(bundle, runtime="null", state_dir=tmp_path / "file" / "state")


def test_two_models_of_one_process_share_the_state_folder(bundle: Bundle, tmp_path: Path) -> None:
    images, _ = golden()
    with (
        edgekit.load(bundle, runtime="null", state_dir=tmp_path) as one,
        edgekit.load(bundle, runtime="null", state_dir=tmp_path) as two,
    ):
        one.predict(images[:2])
        two.predict(images[:3])
    reports = windows(tmp_path)
    assert sorted(report.n for report in reports) == [2, 3]
    assert len({report.boot for report in reports}) == 2


# `edgekit run`


def run_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Run the command line in this process; return its exit code, its output and its errors."""
    from edgekit.cli import main

    monkeypatch.setattr(sys, "argv", ["edgekit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


@pytest.fixture(name="arrays")
def _arrays(tmp_path: Path) -> Path:
    np.savez(tmp_path / "in.npz", image=golden()[0])
    return tmp_path / "in.npz"


def test_run_prints_the_best_classes_by_name(
    bundle: Bundle, arrays: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run_command(
        capsys, monkeypatch, "run", bundle.root, arrays, "--runtime", "null", "--top", 2
    )
    assert code == 0
    lines = out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("sample"))
    assert lines[header].split() == ["sample", "top", "1", "score", "top", "2", "score"]
    assert lines[header + 1].split() == ["0", "star", "0.3356", "circle", "0.2545"]
    assert len(lines) - header - 1 == 8


def test_run_gives_json_and_a_file(
    bundle: Bundle, arrays: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = arrays.with_name("out.npz")
    command = ("run", bundle.root, arrays, "--runtime", "null", "--json", "--output", output)
    code, out, _ = run_command(capsys, monkeypatch, *command)
    assert code == 0
    answer = json.loads(out)
    assert answer["digest"] == bundle.digest
    assert answer["plan"]["runtime"] == "null"
    assert answer["n"] == 8
    assert [guess["label"] for guess in answer["predictions"][0]] == ["star", "circle", "square"]
    with np.load(output) as written:
        np.testing.assert_array_equal(written["probabilities"], golden()[1])
    code, _, err = run_command(capsys, monkeypatch, *command)
    assert code == 2
    assert "out.npz exists" in err
    assert run_command(capsys, monkeypatch, *command, "--overwrite")[0] == 0


def test_run_takes_one_picture(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs edgekit-deploy[image]")
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    image.fromarray(pixels).save(tmp_path / "one.png")
    code, out, _ = run_command(capsys, monkeypatch, "run", bundle.root, tmp_path / "one.png", "--runtime", "null", "--json")  # fmt: skip
    assert code == 0
    assert json.loads(out)["n"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("no-such-file.npz",), 2, "no input data at no-such-file.npz"),
        (("IN", "--label-column", "y"), 2, "--label-column is for .csv files"),
        (("IN", "--device", "toaster"), 2, "toaster"),
        (("IN", "--runtime", "tensorflow"), 2, "unknown runtime 'tensorflow'"),
        (("IN", "--output", "x.csv"), 2, "--output writes .npz files"),
        (("IN", "--overwrite"), 2, "--overwrite is for --output"),
    ],
)
def test_run_says_what_is_wrong(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    bundle: Bundle,
    arrays: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [str(arrays) if word == "IN" else word for word in arguments]
    if "--device" not in given and "--runtime" not in given:
        given += ["--runtime", "null"]
    got, _, err = run_command(capsys, monkeypatch, "run", bundle.root, *given)
    assert got == code
    assert message in err
    assert err.count("\n") == 1


def test_run_refuses_a_damaged_bundle_with_its_own_code(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(bundle.root, tmp_path / "copy")
    name = bundle.manifest.artifacts["onnx-fp32"].path
    data = bytearray((tmp_path / "copy" / name).read_bytes())
    data[100] ^= 1
    (tmp_path / "copy" / name).write_bytes(data)
    code, _, err = run_command(capsys, monkeypatch, "run", tmp_path / "copy", "in.npz", "--runtime", "null")
    assert code == 6
    assert name in err


def test_opening_does_not_change_the_bundle(bundle: Bundle, arrays: Path) -> None:
    edgekit.load(bundle.root, runtime="null", monitor=False).close()
    assert open_bundle(bundle.root).digest == bundle.digest
    assert arrays.exists()
