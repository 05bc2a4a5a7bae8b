from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pytest

from edgekit import atomic
from edgekit.bundle import open_bundle, pack, slice_bundle
from edgekit.daemon.repository import install, installed, prune, reopen, shelved, tidy
from edgekit.daemon.slots import Slots, Version, change, filled, switched
from edgekit.errors import InvalidFileError, UsageError
from edgekit.state import StateFolder, open_state
from tests import bundle_samples as samples

pytestmark = pytest.mark.device


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return open_state(tmp_path / "state")


def test_install_copies_the_whole_bundle(tmp_path: Path, state: StateFolder) -> None:
    bundle = samples.write(tmp_path / "b")
    place = install(tmp_path / "b", state)
    assert place[:3] == ("quadrants", 1, state.repository / "quadrants" / "1")
    assert open_bundle(place.path).digest == bundle.digest
    assert installed(state) == [place._replace(opened=None)]


def test_what_has_been_checked_while_installing_need_not_be_opened_again(
    tmp_path: Path, state: StateFolder
) -> None:
    samples.write(tmp_path / "b")
    for _ in ("copied", "there already"):
        place = install(tmp_path / "b", state)
        assert place.opened == open_bundle(place.path)


def test_install_of_an_archive(tmp_path: Path, state: StateFolder) -> None:
    bundle = samples.write(tmp_path / "b")
    pack(bundle, tmp_path / "b.edgekit")
    assert open_bundle(install(tmp_path / "b.edgekit", state).path).digest == bundle.digest


def test_the_same_bundle_again_changes_nothing(tmp_path: Path, state: StateFolder) -> None:
    samples.write(tmp_path / "b")
    place = install(tmp_path / "b", state)
    before = place.path.stat().st_ino
    assert install(tmp_path / "b", state) == place
    assert place.path.stat().st_ino == before


def test_another_content_under_an_installed_version_is_refused(tmp_path: Path, state: StateFolder) -> None:
    samples.write(tmp_path / "a")
    samples.write(tmp_path / "b", labels=("x", "y", "z"))
    place = install(tmp_path / "a", state)
    digest = open_bundle(place.path).digest
    with pytest.raises(
        UsageError, match=r"version 1 of quadrants is installed with another content.*--version 2"
    ):
        install(tmp_path / "b", state)
    assert open_bundle(place.path).digest == digest


def test_a_damaged_copy_is_replaced(tmp_path: Path, state: StateFolder) -> None:
    samples.write(tmp_path / "b")
    place = install(tmp_path / "b", state)
    (place.path / "golden.npz").write_bytes(b"damaged")
    assert open_bundle(install(tmp_path / "b", state).path)


def test_a_slice_is_completed_by_the_full_bundle_and_not_the_reverse(
    tmp_path: Path, state: StateFolder
) -> None:
    full = samples.write(tmp_path / "full")
    slice_bundle(full, ["tflite-fp32"], tmp_path / "slice")
    place = install(tmp_path / "slice", state)
    assert open_bundle(place.path).kept == {"tflite-fp32"}
    install(tmp_path / "full", state)
    assert open_bundle(place.path).kept == full.kept
    install(tmp_path / "slice", state)
    assert open_bundle(place.path).kept == full.kept


def test_a_damaged_bundle_is_not_installed(tmp_path: Path, state: StateFolder) -> None:
    samples.write(tmp_path / "b")
    (tmp_path / "b" / "golden.npz").write_bytes(b"damaged")
    with pytest.raises(InvalidFileError, match=r"golden\.npz"):
        install(tmp_path / "b", state)
    assert installed(state) == []


@pytest.mark.parametrize("name", ["..", "a/b", "", "-x", "name:labels", "x" * 200, "ä"])
def test_a_name_that_is_no_folders_is_refused(tmp_path: Path, state: StateFolder, name: str) -> None:
    samples.write(tmp_path / "b", name=name)
    with pytest.raises(InvalidFileError, match="cannot be installed under its name"):
        install(tmp_path / "b", state)


def test_what_is_not_installed_and_leftovers(tmp_path: Path, state: StateFolder) -> None:
    for version in (2, 10, 9):
        samples.write(tmp_path / f"b{version}", version=version)
        install(tmp_path / f"b{version}", state)
    leftover = state.repository / "quadrants" / ".11.abc.tmp"
    leftover.mkdir()
    (leftover / "half").write_bytes(b"x")
    (state.repository / "empty").mkdir()
    (state.repository / "a file").write_bytes(b"")
    (each,) = shelved(state)
    assert (each.name, each.versions) == ("quadrants", (10, 9, 2))
    tidy(state)
    assert not leftover.exists()
    assert versions(state) == ["10", "2", "9"]


def versions(state: StateFolder) -> list[str]:
    return sorted(entry.name for entry in (state.repository / "quadrants").iterdir() if entry.is_dir())


def activate(state: StateFolder) -> Slots:
    """Do as the daemon does once a candidate has proven itself."""

    def step(slots: Slots) -> Slots:
        assert slots.candidate is not None
        return switched(slots, slots.candidate)

    return change(state, "quadrants", step)


def test_what_was_installed_last_is_the_candidate_and_the_active_one_stays(
    tmp_path: Path, state: StateFolder
) -> None:
    for version in (9, 10):
        samples.write(tmp_path / f"b{version}", version=version)
    install(tmp_path / "b10", state)
    assert [place.version for place in installed(state)] == [10]
    activate(state)
    install(tmp_path / "b9", state)
    assert [place.version for place in installed(state)] == [10]
    assert activate(state).active == Version(9, open_bundle(tmp_path / "b9").digest)
    assert [place.version for place in installed(state)] == [9]


def test_what_is_installed_already_is_put_up_again(tmp_path: Path, state: StateFolder) -> None:
    for version in (1, 2):
        samples.write(tmp_path / f"b{version}", version=version)
        install(tmp_path / f"b{version}", state)
        activate(state)
    place = install(state.repository / "quadrants" / "1", state)
    assert place.version == 1
    slots = shelved(state)[0].slots
    assert [each.version for each in filled(slots)] == [2, 1, 1]
    activate(state)
    assert [each.version for each in filled(shelved(state)[0].slots)] == [1, 2]


def test_a_repository_without_slots_has_its_newest_version_as_the_candidate(
    tmp_path: Path, state: StateFolder
) -> None:
    for version in (2, 10, 9):
        samples.write(tmp_path / f"b{version}", version=version)
        install(tmp_path / f"b{version}", state)
    for text in (None, b"", b"null", b"{}", b'{"active": 3}', b"\xff", b"[" * 10_000):
        path = state.repository / "quadrants" / "slots.json"
        path.unlink() if text is None else path.write_bytes(text)
        assert shelved(state)[0].slots == Slots(candidate=Version(10, "")), text
        assert [place.version for place in installed(state)] == [10]
    assert reopen(state, "quadrants", Version(10, "")).manifest.version == 10


def test_slots_of_a_newer_edgekit_are_refused_by_name(tmp_path: Path, state: StateFolder) -> None:
    samples.write(tmp_path / "b")
    install(tmp_path / "b", state)
    (state.repository / "quadrants" / "slots.json").write_bytes(b'{"schema": 2}')
    for touch in (lambda: shelved(state), lambda: install(tmp_path / "b", state)):
        with pytest.raises(InvalidFileError, match=r"newer EdgeKit.*schema 2"):
            touch()


def test_versions_in_no_slot_are_removed(tmp_path: Path, state: StateFolder) -> None:
    for version in (1, 2, 3, 4):
        samples.write(tmp_path / f"b{version}", version=version)
        install(tmp_path / f"b{version}", state)
        if version < 4:
            activate(state)
    prune(state, "quadrants")
    assert versions(state) == ["2", "3", "4"]
    activate(state)
    with (state.repository / ".install.lock").open() as other:  # another process installs just now
        fcntl.flock(other, fcntl.LOCK_EX)
        prune(state, "quadrants")
        tidy(state)
    assert versions(state) == ["2", "3", "4"]
    prune(state, "quadrants")
    assert versions(state) == ["3", "4"]
    prune(state, "nothing")


def test_what_is_in_a_slot_and_is_another_bundle_by_now_is_refused(
    tmp_path: Path, state: StateFolder
) -> None:
    samples.write(tmp_path / "b")
    install(tmp_path / "b", state)
    with pytest.raises(InvalidFileError, match=r"another content.*Install it again"):
        reopen(state, "quadrants", Version(1, "0" * 64))
    with pytest.raises(InvalidFileError, match="version 2 of quadrants is not installed any more"):
        reopen(state, "quadrants", Version(2, ""))


def test_a_version_that_was_moved_aside_goes_back(
    tmp_path: Path, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = samples.write(tmp_path / "full")
    slice_bundle(full, ["tflite-fp32"], tmp_path / "slice")
    place = install(tmp_path / "slice", state)
    place.path.rename(place.path.with_name(".1.0123456789ab.old"))
    tidy(state)
    assert open_bundle(place.path).kept == {"tflite-fp32"}
    monkeypatch.setattr(atomic, "_rename", lambda *_: False)  # as on a file system without an exchange
    install(tmp_path / "full", state)
    shutil.copytree(tmp_path / "slice", place.path.with_name(".1.0123456789ab.old"))
    tidy(state)
    assert open_bundle(place.path).kept == full.kept
    assert versions(state) == ["1"]
