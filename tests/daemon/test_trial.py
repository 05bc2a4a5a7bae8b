"""Trials in real children, with the real ONNX Runtime."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.daemon.memory import RESERVE_MIB, available_mib, give_back, room_mib
from edgekit.daemon.trial import try_bundle
from edgekit.daemon.trial_child import LoadOptions
from edgekit.errors import EdgeKitError, InvalidFileError, RefusedError, UnavailableError
from edgekit.memory_use import resident_mib
from tests.daemon.versions import BAD, good, put_in_front, trigger

pytestmark = pytest.mark.device


@pytest.fixture(autouse=True)
def _in_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(str(put_in_front(tmp_path / "front")))


def attempt(bundle: Path, **limits: float) -> object:
    options = LoadOptions(runtime="onnxruntime", device="x86-64")
    return try_bundle(bundle, bundle.parent / "state", options, what="tiny 2", **limits)


def test_a_good_version_passes_and_tells_what_it_takes(tmp_path: Path) -> None:
    good(tmp_path / "b", 2)
    options = LoadOptions(runtime="onnxruntime", device="x86-64")
    trial = try_bundle(tmp_path / "b", tmp_path / "state", options, what="tiny 2")
    assert trial.runtime == "onnxruntime"
    assert 5 < trial.memory_mib <= trial.peak_mib < 500


def test_the_size_of_the_daemon_is_not_the_models(tmp_path: Path) -> None:
    """The kernel's `ru_maxrss` of a child begins with its parent's memory: each trial would be as large as the daemon."""
    good(tmp_path / "b", 2)
    large = np.ones(400 << 20, np.uint8)
    options = LoadOptions(runtime="onnxruntime", device="x86-64")
    trial = try_bundle(tmp_path / "b", tmp_path / "state", options, what="tiny 2", room_mib=300.0)
    assert trial.peak_mib < 300 < large.nbytes >> 20


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_version_fails_with_its_reason(tmp_path: Path, kind: str) -> None:
    write, says = BAD[kind]
    write(tmp_path / "b", 2)
    with pytest.raises((RefusedError, InvalidFileError)) as refused:
        attempt(tmp_path / "b")
    assert says in str(refused.value)
    assert not list(tmp_path.glob("**/core*"))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    good(tmp_path / "b", 2)
    path = tmp_path / "b" / "artifacts/onnx-fp32/tiny.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(InvalidFileError, match=r"tiny\.onnx is damaged: its SHA-256 is wrong"):
        attempt(tmp_path / "b")


def test_a_runtime_that_is_not_there_keeps_its_kind(tmp_path: Path) -> None:
    good(tmp_path / "b", 2)
    options = LoadOptions(runtime="onnxruntime", device="jetson-orin-nano")
    with pytest.raises(UnavailableError, match="TensorrtExecutionProvider") as refused:
        try_bundle(tmp_path / "b", tmp_path / "state", options, what="tiny 2")
    assert refused.value.hint


def test_a_hang_is_ended(tmp_path: Path) -> None:
    trigger("hang")(tmp_path / "b", 2)
    began = time.monotonic()
    with pytest.raises(RefusedError, match=r"tiny 2 gave no answer within 4 s while it was loaded"):
        attempt(tmp_path / "b", time_limit_s=4.0)
    assert time.monotonic() - began < 30
    assert not _children()


def test_one_that_grows_without_end_is_ended_before_memory_is(tmp_path: Path) -> None:
    trigger("grow")(tmp_path / "b", 2)
    with pytest.raises(
        RefusedError, match=r"tiny 2 is too large: it grew beyond.*at most 150 MiB"
    ) as refused:
        attempt(tmp_path / "b", room_mib=150.0)
    assert float(str(refused.value).partition("got ")[2].split()[0]) < 600
    assert not _children()


def test_one_that_is_too_large_at_its_end_is_refused(tmp_path: Path) -> None:
    good(tmp_path / "b", 2)
    with pytest.raises(RefusedError, match="too large"):
        attempt(tmp_path / "b", room_mib=1.0)


def _children() -> list[str]:
    """Return the commands of this process's children that live."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    return [text for pid in listed if "trial_child" in (text := Path(f"/proc/{pid}/cmdline").read_text())]


# Memory


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 4096000 kB\nMemAvailable: 2048000 kB\n"}
UNIT = "sys/fs/cgroup/system.slice/edgekit.service"


def test_what_is_left_is_what_the_machine_and_the_unit_leave(tmp_path: Path) -> None:
    assert available_mib(tree(tmp_path / "a", MACHINE)) == 2000
    unit = {
        **MACHINE,
        "proc/self/cgroup": "0::/system.slice/edgekit.service\n",
        f"{UNIT}/memory.max": f"{512 << 20}\n",
        f"{UNIT}/memory.current": f"{200 << 20}\n",
        f"{UNIT}/memory.stat": f"anon 1\ninactive_file {50 << 20}\n",
        "sys/fs/cgroup/system.slice/memory.max": "max\n",
    }
    assert available_mib(tree(tmp_path / "b", unit)) == 362
    unit["sys/fs/cgroup/system.slice/memory.max"] = f"{300 << 20}\n"
    unit["sys/fs/cgroup/system.slice/memory.current"] = f"{290 << 20}\n"
    assert available_mib(tree(tmp_path / "c", unit)) == 10
    assert available_mib(tree(tmp_path / "d", {"proc/self/cgroup": "garbage"})) == float("inf")
    assert 0 < available_mib() < float("inf")


@pytest.mark.parametrize(
    ("left", "allowed", "held", "room"),
    [(1000, None, 0, 1000 - RESERVE_MIB), (1000, 100, 0, 100), (1000, 100, 70, 30), (1000, 100, 120, 0), (10, None, 0, 0)],
)  # fmt: skip
def test_room(left: float, allowed: float | None, held: float, room: float) -> None:
    assert room_mib(left, allowed, held) == room


def test_memory_that_is_freed_goes_back_to_the_system() -> None:
    kept = [bytes(100_000) for _ in range(2000)]  # below what the allocator maps apart
    last = kept[-1]
    before = resident_mib()
    kept.clear()
    give_back()
    assert last
    assert resident_mib() < before - 100


def test_resident_memory_of_a_process() -> None:
    assert resident_mib() == pytest.approx(resident_mib(os.getpid()), abs=5)
    assert resident_mib(1 << 30) == 0


def test_the_errors_that_a_child_tells_of_are_the_familys() -> None:
    from edgekit.daemon.trial import _KINDS

    assert all(issubclass(kind, EdgeKitError) and kind.exit_code == code for code, kind in _KINDS.items())
