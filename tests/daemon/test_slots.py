from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edgekit.daemon.slots import (
    Slots,
    Version,
    change,
    filled,
    offered,
    read_slots,
    refused,
    returned,
    switched,
)
from edgekit.errors import MachineError
from edgekit.state import open_state

pytestmark = pytest.mark.device

ONE, TWO, THREE = (Version(number, f"{number}" * 64) for number in (1, 2, 3))
BAD = Version(3, "3" * 64, reason="it crashed")


@pytest.mark.parametrize(
    ("before", "new", "after"),
    [
        (Slots(), ONE, Slots(candidate=ONE)),
        (Slots(active=ONE), TWO, Slots(active=ONE, candidate=TWO)),
        (Slots(active=ONE, candidate=TWO), THREE, Slots(active=ONE, candidate=THREE)),
        (Slots(active=ONE, candidate=BAD), THREE, Slots(active=ONE, candidate=THREE)),
        # the active one again: it takes back what was to replace it, and forgets nothing
        (Slots(active=ONE, candidate=TWO), ONE, Slots(active=ONE)),
        (Slots(active=ONE, candidate=BAD), ONE, Slots(active=ONE, candidate=BAD)),
        # another content under the active one's number is another version
        (Slots(active=ONE), Version(1, "f" * 64), Slots(active=ONE, candidate=Version(1, "f" * 64))),
        # the one before, by hand
        (Slots(active=TWO, previous=ONE), ONE, Slots(active=TWO, previous=ONE, candidate=ONE)),
    ],
)
def test_what_is_installed_is_the_candidate(before: Slots, new: Version, after: Slots) -> None:
    assert offered(before, new) == after


@pytest.mark.parametrize(
    ("before", "new", "after"),
    [
        (Slots(candidate=ONE), ONE, Slots(active=ONE)),
        (Slots(active=ONE, candidate=TWO), TWO, Slots(active=TWO, previous=ONE)),
        (Slots(active=TWO, previous=ONE, candidate=THREE), THREE, Slots(active=THREE, previous=TWO)),
        (Slots(active=TWO, previous=ONE, candidate=ONE), ONE, Slots(active=ONE, previous=TWO)),
        # another was installed while this one was tried
        (Slots(active=ONE, candidate=THREE), TWO, Slots(active=TWO, previous=ONE, candidate=THREE)),
        # the same, with what was learnt of it
        (Slots(active=TWO, previous=ONE), TWO, Slots(active=TWO, previous=ONE)),
    ],
)
def test_what_was_active_is_kept_to_go_back_to(before: Slots, new: Version, after: Slots) -> None:
    assert switched(before, new) == after


def test_what_is_refused_stays_with_its_reason_and_replaces_nothing() -> None:
    found = refused(Slots(active=TWO, previous=ONE, candidate=THREE), THREE, "it  crashed\n")
    assert found == Slots(active=TWO, previous=ONE, candidate=BAD)
    long = refused(found, THREE, "x" * 5000).candidate
    assert long is not None
    assert len(long.reason) == 600


def test_going_back() -> None:
    found = returned(Slots(active=THREE, previous=TWO, candidate=ONE), "it crashed")
    assert found == Slots(active=TWO, candidate=BAD)
    for nowhere in (Slots(active=ONE), Slots(previous=ONE), Slots()):
        assert returned(nowhere, "it crashed") == nowhere
    assert filled(found) == [TWO, BAD]


def test_slots_are_stored_whole(tmp_path: Path) -> None:
    state = open_state(tmp_path / "state")
    slots = Slots(active=TWO, previous=ONE, candidate=BAD)
    assert change(state, "m", lambda _: slots) == slots
    path = state.repository / "m" / "slots.json"
    assert read_slots(path.parent) == slots
    before = path.stat().st_ino
    change(state, "m", lambda slots: slots)
    assert path.stat().st_ino == before  # nothing is written for nothing
    assert read_slots(tmp_path) is None


def test_changes_come_one_after_another(tmp_path: Path) -> None:
    state = open_state(tmp_path / "state")

    def add() -> None:
        for _ in range(20):
            change(state, "m", lambda slots: Slots(active=Version((slots.active or ONE).version + 1, "")))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_slots(state.repository / "m")
    assert found is not None
    assert found.active == Version(81, "")


def test_a_disk_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    state = open_state(tmp_path / "state")
    change(state, "m", lambda _: Slots(active=ONE))
    (state.repository / "file").write_bytes(b"")
    with pytest.raises(MachineError, match="cannot write"):
        change(state, "file", lambda _: Slots(active=TWO))
