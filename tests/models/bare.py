"""What the bare tool does on a pair that EdgeKit converts too: `python -m tests.models.bare MODEL FORMAT PRECISION`.

The tool makes its artifact in a child with limits on time and memory; another child runs the source in its own
framework, a third the artifact. Whether it is right is judged as EdgeKit's gate would, and nobody stops it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.corpus import ROOT
from tests.models import Model, model
from tests.models.build import built
from tests.models.feeds import Feed, feeds_of, save_feeds
from tests.models.integers import holds_integers
from tests.models.judging import Judgement, judge

__all__ = ["BareResult", "Child", "judge_file", "run_bare", "run_child"]

TIME_LIMIT_S = 300.0
MEMORY_LIMIT_BYTES = 12 << 30


@dataclass(frozen=True)
class BareResult:
    """What the bare tool did.

    Attributes:
        verdict: `right`, `wrong` (made, runs, answers too far off), `failed`, or `no-tool`.
        reason: The first line of why it is not right.
        time_s: To make it, imports and loading included, in seconds.
        peak_mib: Largest resident memory of the child that made it, in MiB.
        size_bytes: Of all files of the artifact.
        judgement: The numbers; None where nothing ran.
    """

    verdict: str
    reason: str
    time_s: float = 0.0
    peak_mib: float = 0.0
    size_bytes: int = 0
    judgement: Judgement | None = None


@dataclass(frozen=True)
class Child:
    """How a child ended.

    Attributes:
        result: What it wrote; a failure with the reason where it wrote nothing.
        time_s: From start to end, in seconds.
        peak_mib: Largest resident memory of it or of a child of its own, in MiB.
    """

    result: dict[str, Any]
    time_s: float
    peak_mib: float


def run_bare(entry: Model, format_: str, precision: str) -> BareResult:
    """Let the bare tool convert a model, then compare its answers with the source's."""
    feeds = feeds_of(entry)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        calibration = feeds.calibration or _example(entry, feeds.comparison)
        child = _make(entry, format_, precision, calibration, folder)
        made = BareResult(child.result["status"], child.result["reason"], child.time_s, child.peak_mib)
        if made.verdict != "made":
            return made
        file = Path(child.result["file"])
        judged = judge_file(entry, format_, precision, file)
        return dataclasses.replace(judged, time_s=made.time_s, peak_mib=made.peak_mib)


def judge_file(entry: Model, format_: str, precision: str, file: Path) -> BareResult:
    """Compare the answers of an artifact, whoever made it, with the source's; time and memory are left at 0.

    Args:
        entry: The model that it was made of.
        format_: The artifact's.
        precision: Whose limits apply.
        file: The artifact; of OpenVINO's two files the `.xml`.
    """
    feeds = feeds_of(entry)
    size = sum(part.stat().st_size for part in _files(file, format_))
    if precision.startswith("int") and not holds_integers(format_, file):
        return BareResult("failed", "made, but nothing in it is quantized", size_bytes=size)
    source = _load(_answers(entry, feeds.comparison))
    with tempfile.TemporaryDirectory() as scratch:
        answers = Path(scratch) / "answers.npz"
        ran = _run(f"made-{format_}", file, feeds.comparison, answers, Path(scratch)).result
        if ran["status"] != "ran":
            return BareResult("failed", f"made, but does not run: {ran['reason']}", size_bytes=size)
        found = judge(
            source,
            _load(answers),
            entry.quantized or precision,
            classes=entry.task == "classification",
            labels=feeds.labels,
        )
    verdict = "right" if found.right else "wrong"
    return BareResult(verdict, found.reason, size_bytes=size, judgement=found)


def _example(entry: Model, comparison: list[Feed]) -> list[Feed]:
    """Return one feed for a tool that traces; what has no batch axis has no calibration samples either."""
    return comparison[:1] if entry.kind == "torchscript" else []


def _files(file: Path, format_: str) -> list[Path]:
    if format_ == "openvino":
        return [file, file.with_suffix(".bin")]
    return [file, *file.parent.glob("*.data")]  # weights that torch.onnx.export put beside it


def _make(entry: Model, format_: str, precision: str, calibration: list[Feed], folder: Path) -> Child:
    save_feeds(folder / "calibration.npz", calibration)
    out = folder / "made"
    out.mkdir()
    return run_child(
        {
            "do": "make", "kind": entry.kind, "model": str(entry.path), "format": format_, "precision": precision,
            "calibration": str(folder / "calibration.npz"), "out": str(out),
        },
        folder,
    )  # fmt: skip


def _answers(entry: Model, comparison: list[Feed]) -> Path:
    """Return the source's own answers to these very feeds, kept for the other formats and precisions."""

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            ran = _run(entry.kind, entry.path, comparison, folder / "answers.npz", Path(scratch))
        if ran.result["status"] != "ran":
            raise RuntimeError(f"the source {entry.id} does not run: {ran.result['reason']}")

    given = hashlib.sha256()
    for feed in comparison:
        for name, array in feed.items():
            given.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return built(f"answers-{entry.id}-{given.hexdigest()[:12]}", make, "engines") / "answers.npz"


def _run(engine: str, path: Path, feeds: list[Feed], answers: Path, folder: Path) -> Child:
    save_feeds(folder / "feeds.npz", feeds)
    task = {"do": "run", "engine": engine, "model": str(path), "feeds": str(folder / "feeds.npz")}
    return run_child({**task, "answers": str(answers)}, folder)


def run_child(task: dict[str, Any], folder: Path, module: str = "tests.models.bare_tools") -> Child:
    """Do a task in a child of its own, within the limits; its log is `child.log` in `folder`."""
    task_path, log = folder / f"{task['do']}.json", folder / "child.log"
    task_path.write_text(json.dumps(task), encoding="utf-8")
    with log.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(task_path)],
            cwd=folder, stdout=stream, stderr=stream, env=_environment(), start_new_session=True,
            preexec_fn=_limit_memory,  # noqa: PLW1509  # this program starts no thread before it
        )  # fmt: skip
    timer = threading.Timer(TIME_LIMIT_S, os.killpg, (child.pid, signal.SIGKILL))
    timer.start()
    started = _now_s()
    _, status, usage = os.wait4(child.pid, 0)
    time_s = _now_s() - started
    timer.cancel()
    child.returncode = os.waitstatus_to_exitcode(status)
    written = task_path.with_suffix(".result")
    result = (
        json.loads(written.read_text("utf-8")) if written.exists() else _death(child.returncode, time_s, log)
    )
    return Child(result, time_s, usage.ru_maxrss / 1024)


def _now_s() -> float:
    import time

    return time.monotonic()


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))


def _environment() -> dict[str, str]:
    # tools leave files where they run: that is not here
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {
        "PYTHONPATH": paths,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONHASHSEED": "0",
    }
    return {**os.environ, **quiet}


def _death(code: int, time_s: float, log: Path) -> dict[str, Any]:
    if time_s >= TIME_LIMIT_S:
        return {"status": "failed", "reason": f"stopped at the time limit of {TIME_LIMIT_S:g} s"}
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return {"status": "failed", "reason": f"{how}: {lines[-1][:200] if lines else 'no output'}"}


def _load(path: Path) -> list[np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return [archive[name] for name in sorted(archive.files)]


def main(arguments: list[str]) -> int:
    """Print what the bare tool did, as JSON."""
    if len(arguments) != 3:
        print("usage: python -m tests.models.bare MODEL FORMAT PRECISION", file=sys.stderr)
        return 2
    result = run_bare(model(arguments[0]), arguments[1], arguments[2])
    print(json.dumps(dataclasses.asdict(result), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
