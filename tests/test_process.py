from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import InvalidFileError, MachineError, UnavailableError
from edgekit.manifest import Recipe
from edgekit.process import Worker, WorkerDiedError, WorkerLimits, python_command
from edgekit.tasks import Convert, Describe, RunSource, Score, Task
from edgekit.verify import converted_from
from tests.conversions import converted_twice, reference_onnx
from tests.corpus import ROOT

pytestmark = pytest.mark.convert


@pytest.fixture(name="worker")
def _worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    worker = Worker(tmp_path, WorkerLimits())
    yield worker
    worker.close()


def limited(worker: Worker, limits: WorkerLimits) -> Worker:
    worker.limits = limits
    return worker


def odd(name: str, out: Path, *precisions: str) -> Convert:
    """Return the task that runs one of the odd converters below."""
    return Convert(
        converter=f"tests.odd_converters:{name}",
        kind="onnx-source",
        path="/nowhere.onnx",
        inputs=(),
        outputs=(),
        recipes=tuple(Recipe(route=("odd",), precision=p) for p in precisions or ("fp32",)),
        calibration=None,
        out=str(out),
    )


def tell(worker: Worker, out: Path) -> dict[str, str]:
    """Return what a worker says of itself."""
    (answer, *_) = worker.ask(odd("Telltale", out))
    assert answer.part is not None
    return answer.part.tools


def gone(pid: int) -> bool:
    """Tell whether a process is gone, or dead and not yet collected."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def wait_until_gone(pid: int) -> None:
    until = time.monotonic() + 20.0
    while not gone(pid):
        assert time.monotonic() < until, f"process {pid} lives"
        time.sleep(0.05)


# Commands


def test_python_command_is_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKIT_LAUNCHER", raising=False)
    assert python_command("-m", "edgekit") == [sys.executable, "-m", "edgekit"]
    assert python_command() == [sys.executable]


def test_a_launcher_goes_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_LAUNCHER", "/usr/bin/qemu-aarch64 -L '/a b'")
    assert python_command("x") == ["/usr/bin/qemu-aarch64", "-L", "/a b", sys.executable, "x"]


# What a worker may see


def test_a_worker_has_a_home_of_its_own_and_no_secrets(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("EDGEKIT_ODD", "passed")
    monkeypatch.chdir(tmp_path)
    said = tell(worker, tmp_path)
    assert said["HOME"] == said["TMPDIR"] == str(tmp_path / "home")
    assert "AWS_SECRET_ACCESS_KEY" not in said["variables"].split()
    assert said["EDGEKIT_ODD"] == "passed"
    assert said["PYTHONHASHSEED"] == "0"
    assert said["CUDA_VISIBLE_DEVICES"] == "-1"
    assert said["cwd"] == str(tmp_path)


def test_a_worker_has_no_network(worker: Worker, tmp_path: Path) -> None:
    said = tell(worker, tmp_path)
    if said["left_network"] != "True":
        pytest.skip("this system does not let a process leave the network")
    assert said["interfaces"] == "lo"


def test_a_worker_is_kept_for_the_next_task(worker: Worker, tmp_path: Path) -> None:
    assert tell(worker, tmp_path)["pid"] == tell(worker, tmp_path)["pid"]


def test_frameworks_may_print_what_they_like(worker: Worker, tmp_path: Path) -> None:
    (answer, *_) = worker.ask(odd("Chatterbox", tmp_path))
    assert answer.part is not None
    assert "{not an answer}" in (tmp_path / "worker.log").read_text()


# Deaths


def test_a_killed_worker_is_told_with_its_signal_and_replaced(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(
        WorkerDiedError,
        match=r"^the worker was killed by SIGKILL \(out of memory\?\); its log ends: last words$",
    ):
        list(worker.ask(odd("Killed", tmp_path)))
    assert tell(worker, tmp_path)["pid"]


def test_an_exit_is_told_with_its_code(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(WorkerDiedError, match=r"^the worker ended with exit code 7"):
        list(worker.ask(odd("Quitter", tmp_path)))


def test_a_crash_in_native_code_has_a_name(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(WorkerDiedError, match=r"^the worker was killed by SIGSEGV(?! \(out)"):
        list(worker.ask(odd("Crasher", tmp_path)))


def test_parts_come_before_the_death(worker: Worker, tmp_path: Path) -> None:
    answers = iter(worker.ask(odd("KilledAtSecond", tmp_path, "fp32", "fp16")))
    first = next(answers)
    assert first.part is not None
    assert first.part.path == "fp32"
    with pytest.raises(WorkerDiedError):
        next(answers)


def test_the_time_limit_counts_from_part_to_part(worker: Worker, tmp_path: Path) -> None:
    tell(worker, tmp_path)  # the start is not what this measures
    slow = limited(worker, WorkerLimits(time_s=4.0))
    parts = list(slow.ask(odd("Slow", tmp_path, *["fp32"] * 3)))  # 3 × 2 s
    assert len([part for part in parts if part.part]) == 3
    with pytest.raises(WorkerDiedError, match=r"^the worker was stopped at the time limit of 4 s"):
        list(slow.ask(odd("Sleeper", tmp_path)))


def test_the_memory_limit_stops_a_hoarder(worker: Worker, tmp_path: Path) -> None:
    tell(worker, tmp_path)
    greedy = limited(worker, WorkerLimits(memory_mib=500.0))
    with pytest.raises(WorkerDiedError, match=r"at the memory limit of 500 MiB \(\d+ used\)"):
        list(greedy.ask(odd("Hoarder", tmp_path)))
    assert worker.peak_mib > 500.0


def test_closing_ends_the_process_and_its_children(worker: Worker, tmp_path: Path) -> None:
    said = tell(worker, tmp_path)
    (answer, *_) = worker.ask(odd("Parent", tmp_path))
    assert answer.part is not None
    child = int(answer.part.path)
    assert not gone(child)
    worker.close()
    wait_until_gone(int(said["pid"]))
    wait_until_gone(child)
    worker.close()


def test_stopping_from_another_thread_ends_the_task_for_good(worker: Worker, tmp_path: Path) -> None:
    tell(worker, tmp_path)
    threading.Timer(1.0, worker.stop).start()
    with pytest.raises(WorkerDiedError, match="killed by SIGKILL"):
        list(worker.ask(odd("Sleeper", tmp_path)))
    with pytest.raises(WorkerDiedError, match="the worker was stopped"):
        tell(worker, tmp_path)


def test_a_reader_that_gives_up_ends_the_worker(worker: Worker, tmp_path: Path) -> None:
    """Half an answer must not be taken for the next task's."""
    answers = worker.ask(odd("Slow", tmp_path, "fp32", "fp16"))
    next(answers)
    answers.close()  # type: ignore[attr-defined]  # a generator
    assert tell(worker, tmp_path)["pid"]


def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    """Killed outright, the parent cannot close anything."""
    import subprocess

    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from edgekit.process import Worker, WorkerLimits\n"
        "from tests.test_process import tell\n"
        "print(tell(Worker(Path(sys.argv[1]), WorkerLimits()), Path(sys.argv[1]))['pid'], flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    wait_until_gone(pid)


# Answers and errors


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("Unavailable", UnavailableError, "no such tool"),
        ("Uninstalled", UnavailableError, r"this model needs the package no_such. Run: .*deploy\[convert\]"),
        ("Invalid", InvalidFileError, "bad file"),
        ("FullDisk", MachineError, "the disk is full where the work is done"),
        ("HiddenFullDisk", MachineError, "the disk is full where the work is done"),
    ],
)
def test_errors_keep_their_kind(
    worker: Worker, tmp_path: Path, name: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        list(worker.ask(odd(name, tmp_path)))
    assert tell(worker, tmp_path)["pid"], "and the worker goes on"


def test_a_page_of_error_becomes_a_line(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"^RuntimeError: line 0 line 1 ") as error:
        list(worker.ask(odd("Verbose", tmp_path)))
    assert len(str(error.value)) <= 600
    assert "\n" not in str(error.value)
    assert "line 999" in (tmp_path / "worker.log").read_text()


def test_a_source_is_described_and_run(worker: Worker, tmp_path: Path) -> None:
    import numpy as np

    model = str(reference_onnx())
    (described, *_) = worker.ask(Describe("onnx", model))
    assert described.described is not None
    assert [spec.name for spec in described.described.inputs] == ["image"]
    assert set(described.described.tools) == {"onnx", "onnxruntime"}
    images = np.random.default_rng(0).random((70, 28, 28, 1)).astype(np.float32)
    np.savez(tmp_path / "in.npz", image=images)
    list(worker.ask(RunSource("onnx", model, str(tmp_path / "in.npz"), str(tmp_path / "out.npz"))))
    with np.load(tmp_path / "out.npz") as answers:
        assert answers["output_0"].shape == (70, 10)  # in batches of 32, the last one shorter
        assert np.allclose(answers["output_0"].sum(axis=1), 1.0, atol=1e-5)


def score(
    worker: Worker, tmp_path: Path, artifact: str, target: str, **more: Any
) -> tuple[dict[str, Any], Any]:
    import numpy as np

    bundle = converted_twice(target)[0]
    images = np.random.default_rng(0).random((5, 28, 28, 1)).astype(np.float32)
    np.savez(tmp_path / "in.npz", image=images)
    runtime = {"tflite": "litert", "onnx": "onnxruntime", "openvino": "openvino"}[artifact.partition("-")[0]]
    task: Task = Score(
        runtime, converted_from(bundle, artifact), 1, {}, str(tmp_path / "in.npz"), str(tmp_path / "out.npz"),
        **more,
    )  # fmt: skip
    scored = next(answer.scored for answer in worker.ask(task) if answer.scored is not None)
    with np.load(tmp_path / "out.npz") as answers:
        return dict(answers), scored


def test_an_artifact_is_scored_one_by_one_and_in_a_pair(worker: Worker, tmp_path: Path) -> None:
    import numpy as np

    answers, scored = score(worker, tmp_path, "onnx-fp32", "jetson", pairs=True, timed_runs=3)
    assert set(answers) == {"output_0", "pair:output_0"}
    assert np.shape(answers["output_0"]) == (5, 10)
    assert np.allclose(answers["pair:output_0"], answers["output_0"][:2], atol=1e-6)
    assert scored.pairs
    assert scored.p50_ms > 0.0
    assert scored.runtime.startswith("onnxruntime ")


def test_an_artifact_of_fixed_shape_takes_no_pair(worker: Worker, tmp_path: Path) -> None:
    answers, scored = score(worker, tmp_path, "openvino-fp32", "intel-npu", pairs=True)
    assert set(answers) == {"output_0"}
    assert not scored.pairs
    assert scored.p50_ms == 0.0


def test_limits_are_none_unless_given() -> None:
    assert WorkerLimits() == WorkerLimits(time_s=None, memory_mib=None)
    assert WorkerDiedError.exit_code == 3
