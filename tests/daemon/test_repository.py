from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bundle import open_bundle, pack, slice_bundle
from edgekit.daemon.repository import install, installed, tidy
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


def test_the_newest_version_by_number_and_leftovers(tmp_path: Path, state: StateFolder) -> None:
    for version in (2, 10, 9):
        samples.write(tmp_path / f"b{version}", version=version)
        install(tmp_path / f"b{version}", state)
    leftover = state.repository / "quadrants" / ".11.abc.tmp"
    leftover.mkdir()
    (leftover / "half").write_bytes(b"x")
    (state.repository / "empty").mkdir()
    (state.repository / "a file").write_bytes(b"")
    assert [place.version for place in installed(state)] == [10]
    tidy(state)
    assert not leftover.exists()
    assert sorted(entry.name for entry in (state.repository / "quadrants").iterdir()) == ["10", "2", "9"]
