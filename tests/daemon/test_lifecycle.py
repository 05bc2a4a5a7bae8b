"""How versions come to be served: real trials, real files, the null runtime where the runtime does not matter."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from edgekit.daemon import lifecycle, memory, repository
from edgekit.daemon.lifecycle import Attempt, Lifecycle, attempts
from edgekit.daemon.repository import install, shelved
from edgekit.daemon.slots import Slots, Version
from edgekit.daemon.starts import Now, Starts
from edgekit.daemon.trial_child import LoadOptions
from edgekit.errors import (
    EdgeKitError,
    InvalidFileError,
    MachineError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from edgekit.model import Model
from edgekit.monitor.outbox import Outbox
from edgekit.monitor.recorder import Recorder
from edgekit.state import StateFolder, open_state
from tests import bundle_samples as samples
from tests.daemon import versions

pytestmark = pytest.mark.device

ONE, TWO, THREE = (Version(number, f"{number}" * 64, proven="yes") for number in (1, 2, 3))
BAD = replace(THREE, reason="it crashed")
UNPROVEN = replace(TWO, proven="")


@pytest.mark.parametrize(
    ("slots", "served", "todo"),
    [
        (Slots(), None, []),
        (Slots(candidate=ONE), None, [("candidate", 1, True)]),
        (Slots(active=ONE), None, [("active", 1, False)]),
        (Slots(active=TWO, previous=ONE), None, [("active", 2, False), ("previous", 1, False)]),
        (Slots(active=UNPROVEN, previous=ONE), None, [("active", 2, True), ("previous", 1, False)]),
        (Slots(active=TWO, previous=ONE, candidate=THREE), None, [("candidate", 3, True), ("active", 2, False), ("previous", 1, False)]),
        # what is served stays: nothing else is loaded in place of a candidate that fails
        (Slots(active=TWO, previous=ONE, candidate=THREE), 2, [("candidate", 3, True)]),
        (Slots(active=TWO, previous=ONE, candidate=THREE), 1, [("candidate", 3, True)]),
        # what was refused is tried again when it is asked for, never by a start that has something better
        (Slots(active=TWO, candidate=BAD), None, [("active", 2, False)]),
        (Slots(active=TWO, candidate=BAD), 2, [("candidate", 3, True)]),
        (Slots(candidate=BAD), None, [("candidate", 3, True)]),
        (Slots(active=TWO), 2, [("active", 2, False)]),
    ],
)  # fmt: skip
def test_what_is_loaded_and_what_instead(
    slots: Slots, served: int | None, todo: list[tuple[str, int, bool]]
) -> None:
    found = attempts(slots, served, lambda version: version.proven == "yes")
    assert [(one.slot, one.version.version, one.trial) for one in found] == todo
    assert all(isinstance(one, Attempt) for one in found)


class Device:
    """A state folder with bundles to install, and daemons' lifecycles over it, one after another.

    Attributes:
        up_s: The device's clock.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.state = folder, open_state(folder / "state")
        self.up_s = 0.0
        self._stack = stack
        self._outbox = stack.enter_context(Outbox(folder / "outbox.sqlite"))

    def install(self, version: int, **changes: object) -> None:
        samples.write(self.folder / f"b{version}", version=version, overwrite=True, **changes)
        install(self.folder / f"b{version}", self.state)

    def daemon(self, options: LoadOptions | None = None, allowed_mib: float | None = None) -> Lifecycle:
        return Lifecycle(
            self.state,
            options or LoadOptions(runtime="null"),
            Recorder(self._outbox),
            allowed_mib=allowed_mib,
            starts=Starts(self.state, lambda: Now("boot", self.up_s, self.up_s)),
        )

    def load(self, lifecycle: Lifecycle, name: str = "quadrants") -> Model:
        model = lifecycle.load(name)
        self._stack.callback(model.close)
        return model

    @property
    def slots(self) -> Slots:
        return shelved(self.state)[0].slots

    def numbers(self) -> tuple[int, int, int]:
        """Return the versions in the slots: active, previous, candidate; 0 for none."""
        slots = self.slots
        return tuple(each.version if each else 0 for each in (slots.active, slots.previous, slots.candidate))  # type: ignore[return-value]

    def damage(self, version: int) -> None:
        (self.state.repository / f"quadrants/{version}/golden.npz").write_bytes(b"damaged")


@pytest.fixture(name="device")
def _device(tmp_path: Path) -> Iterator[Device]:
    with ExitStack() as stack:
        yield Device(tmp_path, stack)


def test_a_new_version_proves_itself_and_is_switched_to(device: Device) -> None:
    device.install(1)
    daemon = device.daemon()
    first = device.load(daemon)
    assert (first.version, device.numbers()) == (1, (1, 0, 0))
    active = device.slots.active
    assert active is not None
    assert (active.digest, active.runtime) == (first.digest, "null")
    device.install(2)
    assert daemon.shelf() == [("quadrants", 2, ""), ("quadrants", 1, "")]
    second = device.load(daemon)
    assert (second.version, daemon.served("quadrants"), device.numbers()) == (2, 2, (2, 1, 0))
    daemon.unload(first)
    assert daemon.shelf() == [("quadrants", 2, ""), ("quadrants", 1, "kept to go back to")]
    device.install(3)
    device.load(daemon)
    assert device.numbers() == (3, 2, 0)
    assert sorted(path.name for path in (device.state.repository / "quadrants").iterdir()) == ["2", "3", "slots.json"]  # fmt: skip


def test_what_has_proven_itself_is_not_tried_again(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.install(1)
    device.load(device.daemon())
    tried: list[str] = []

    def no_trial(*_: object, what: str, **__: object) -> None:
        tried.append(what)
        raise RefusedError("no trial here")

    monkeypatch.setattr("edgekit.daemon.lifecycle.try_bundle", no_trial)
    assert device.load(device.daemon()).version == 1
    assert tried == []
    # other options, or another runtime in its place, prove nothing
    with pytest.raises(RefusedError, match="no trial here"):
        device.load(device.daemon(LoadOptions(runtime="null", threads=3)))
    monkeypatch.setattr("edgekit.daemon.lifecycle.runtime_key", lambda _: "upgraded")
    with pytest.raises(RefusedError, match="no trial here"):
        device.load(device.daemon())
    assert tried == ["quadrants 1"] * 2
    assert device.numbers() == (1, 0, 0)


def test_a_version_that_fails_leaves_the_old_one_and_its_reason(device: Device) -> None:
    device.install(1)
    daemon = device.daemon()
    device.load(daemon)
    device.install(2)
    device.damage(2)
    with pytest.raises(InvalidFileError, match=r"golden\.npz is damaged"):
        daemon.load("quadrants")
    assert device.numbers() == (1, 0, 2)
    assert daemon.served("quadrants") == 1
    name, version, reason = daemon.shelf()[0]
    assert (name, version) == ("quadrants", 2)
    assert "golden.npz is damaged" in reason
    # the next start knows it, and does not try again
    again = device.daemon()
    assert device.load(again).version == 1
    assert "golden.npz is damaged" in again.shelf()[0][2]
    # installed once more it has another chance
    device.install(2)
    assert device.slots.candidate == Version(
        2, device.slots.candidate.digest if device.slots.candidate else ""
    )
    assert device.load(again).version == 2
    assert device.numbers() == (2, 1, 0)


def test_a_start_whose_candidate_fails_serves_the_active_one(device: Device) -> None:
    device.install(1)
    device.load(device.daemon())
    device.install(2)
    device.damage(2)
    daemon = device.daemon()
    assert device.load(daemon).version == 1
    assert device.numbers() == (1, 0, 2)
    assert "golden.npz is damaged" in daemon.shelf()[0][2]


def test_a_first_version_that_fails_is_not_active(device: Device) -> None:
    device.install(1)
    device.damage(1)
    for _ in range(2):
        with pytest.raises(InvalidFileError, match=r"golden\.npz is damaged"):
            device.daemon().load("quadrants")
        assert device.numbers() == (0, 0, 1)


def test_an_active_version_whose_files_rot_goes_back_for_good(device: Device) -> None:
    for version in (1, 2):
        device.install(version)
        device.load(device.daemon())
    device.damage(2)
    daemon = device.daemon()
    assert device.load(daemon).version == 1
    assert device.numbers() == (1, 0, 2)
    assert "golden.npz is damaged" in daemon.shelf()[0][2]


def test_a_card_that_cannot_be_read_is_a_reason_to_go_back(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (1, 2):
        device.install(version)
        device.load(device.daemon())

    def unreadable(state: StateFolder, name: str, version: Version) -> object:
        if version.version == 2:
            raise OSError(errno.EIO, "Input/output error", "golden.npz")
        return repository.reopen(state, name, version)

    monkeypatch.setattr(lifecycle, "reopen", unreadable)
    daemon = device.daemon()
    assert device.load(daemon).version == 1
    assert daemon.shelf()[0][2] == "version 2 of quadrants cannot be read: Input/output error (golden.npz)"


def test_old_versions_that_cannot_be_removed_keep_no_new_one_away(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(lifecycle, "prune", fails)
    device.install(1)
    assert device.load(device.daemon()).version == 1
    assert device.numbers() == (1, 0, 0)
    assert "stay on disk" in caplog.text


def test_what_is_installed_during_a_trial_is_not_refused_for_it(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.install(1)
    daemon = device.daemon()
    device.load(daemon)

    def overtaken(*_: object, **__: object) -> None:
        device.install(3)
        raise RefusedError("it failed")

    device.install(2)
    monkeypatch.setattr(lifecycle, "try_bundle", overtaken)
    with pytest.raises(RefusedError, match="it failed"):
        daemon.load("quadrants")
    monkeypatch.undo()
    assert device.load(daemon).version == 3


def test_with_nothing_to_go_back_to_the_reason_is_told(device: Device) -> None:
    device.install(1)
    device.load(device.daemon())
    device.damage(1)
    with pytest.raises(InvalidFileError, match=r"golden\.npz is damaged"):
        device.daemon().load("quadrants")
    assert device.numbers() == (1, 0, 0)
    with pytest.raises(UsageError, match="'other' is installed"):
        device.daemon().load("other")


def test_options_that_fit_nothing_throw_no_version_away(device: Device) -> None:
    for version in (1, 2):
        device.install(version)
        device.load(device.daemon())
    with pytest.raises(EdgeKitError) as refused:
        device.daemon(LoadOptions(device="jetson-orin-nano", runtime="onnxruntime")).load("quadrants")
    assert isinstance(refused.value, UnavailableError | UsageError)
    assert device.numbers() == (2, 1, 0)


def test_the_third_start_in_five_minutes_goes_back(device: Device) -> None:
    for version in (1, 2):
        device.install(version)
        device.load(device.daemon())
    (device.state.root / "starts.json").unlink()
    for start in range(2):
        device.up_s = 100.0 * start
        assert device.load(device.daemon()).version == 2  # and then it dies
    device.up_s = 200.0
    daemon = device.daemon()
    assert device.load(daemon).version == 1
    assert device.numbers() == (1, 0, 2)
    assert daemon.shelf()[0] == ("quadrants", 2, "quadrants 2 ended the daemon: 3 starts within 5 minutes. Install another version.")  # fmt: skip


def test_a_candidate_that_ends_the_daemon_three_times_is_refused(device: Device) -> None:
    device.install(1)
    device.load(device.daemon())
    device.install(2)
    for _ in range(2):
        device.daemon().starts.begin("quadrants", 2)  # its trial passes, and then its load ends everything
    assert device.load(device.daemon()).version == 1
    assert device.numbers() == (1, 0, 2)


def test_starts_far_apart_are_no_crash_loop(device: Device) -> None:
    for version in (1, 2):
        device.install(version)
        device.load(device.daemon())
    (device.state.root / "starts.json").unlink()
    for start in range(5):
        device.up_s = 200.0 * start
        assert device.load(device.daemon()).version == 2


def test_a_crash_loop_with_nothing_to_go_back_to_goes_on(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.install(1)
    for _ in range(4):
        assert device.load(device.daemon()).version == 1
    assert "and there is no other version" in caplog.text


def test_a_full_disk_keeps_the_active_version_and_refuses_the_new(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.install(1)
    first = device.load(device.daemon())
    device.install(2)
    before = device.slots

    def full(*_: object, **__: object) -> None:
        raise MachineError("cannot write: No space left on device")

    monkeypatch.setattr("edgekit.daemon.lifecycle.change", full)
    daemon = device.daemon()
    assert device.load(daemon).version == first.version
    assert device.slots == before
    assert daemon.shelf()[0] == ("quadrants", 2, "cannot write: No space left on device")
    assert list(daemon._served.values()) == [device.slots.active.memory_mib if device.slots.active else -1]


def test_memory_is_measured_and_counted(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.install(1)
    daemon = device.daemon(allowed_mib=300.0)
    model = device.load(daemon)
    assert device.slots.active is not None
    taken = device.slots.active.memory_mib
    assert 0 < taken < 100
    monkeypatch.setattr(memory, "available_mib", lambda: memory.RESERVE_MIB + 0.01)
    device.install(2)
    with pytest.raises(RefusedError, match="quadrants 2 is too large"):
        daemon.load("quadrants")
    monkeypatch.undo()
    assert (daemon.served("quadrants"), device.numbers()) == (1, (1, 0, 2))
    daemon._served[model] = 299.99  # as if it were that large: beside it there is no room for another
    with pytest.raises(RefusedError, match="quadrants 2 is too large"):
        daemon.load("quadrants")
    daemon.unload(model)
    model.close()
    assert device.load(daemon).version == 1  # what was refused is not what an empty place asks for


@pytest.mark.parametrize("kind", versions.BAD)
def test_no_bad_version_is_ever_active(
    device: Device, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(str(versions.put_in_front(tmp_path / "front")))
    versions.good(tmp_path / "one", 1)
    daemon = device.daemon(LoadOptions(runtime="onnxruntime", device="x86-64"))
    install(tmp_path / "one", device.state)
    first = device.load(daemon, "tiny")
    write, says = versions.BAD[kind]
    write(tmp_path / "two", 2)
    install(tmp_path / "two", device.state)
    with pytest.raises((RefusedError, InvalidFileError)):
        daemon.load("tiny")
    assert (daemon.served("tiny"), device.numbers()) == (1, (1, 0, 2))
    assert says in daemon.shelf()[0][2]
    assert first.golden_test().passed


def test_slots_tell_what_they_hold_in_plain_json(device: Device) -> None:
    device.install(1)
    device.load(device.daemon())
    stored = json.loads((device.state.repository / "quadrants/slots.json").read_bytes())
    assert set(stored) == {"active"}
    assert set(stored["active"]) == {"version", "digest", "memory_mib", "runtime", "proven"}


def test_a_folder_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    assert shelved(StateFolder(tmp_path / "none")) == []
