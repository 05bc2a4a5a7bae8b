from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgekit.daemon.starts import MOST_STARTS, Begun, Now, Starts, cut_short, now
from edgekit.state import StateFolder, open_state

pytestmark = pytest.mark.device


def at(up_s: float, boot: str = "b", wall_s: float | None = None) -> Now:
    return Now(boot, up_s, 1e9 + (up_s if wall_s is None else wall_s))


def run(number: int, up_s: float, *, version: int = 2, name: str = "m", loaded: bool = False) -> Begun:
    return Begun(f"run{number}", name, version, at(up_s), loaded)


@pytest.mark.parametrize(
    ("begun", "count"),
    [
        ([], 0),
        ([run(1, 900)], 1),
        ([run(1, 800), run(2, 900)], 2),
        ([run(1, 600), run(2, 900)], 1),  # five minutes and more ago
        ([run(1, 700), run(2, 900)], 2),
        ([run(1, 900, version=1)], 0),
        ([run(1, 900, name="other")], 0),
        ([run(9, 900)], 0),  # this run goes on
        ([run(1, 900, loaded=True)], 1),  # it died while it served
        # what died while it was loaded is to blame, and not what was served already
        ([run(1, 900, loaded=True), run(1, 901, name="other")], 0),
        ([run(1, 900), run(1, 890, name="other", loaded=True)], 1),
        ([run(1, 900, loaded=True), run(1, 901, name="other", loaded=True)], 1),
    ],
)
def test_who_is_to_blame(begun: list[Begun], count: int) -> None:
    assert cut_short(begun, "run9", "m", 2, at(1000)) == count


@pytest.mark.parametrize(
    ("then", "there", "count"),
    [
        (at(5000, "a", 0), at(10, "b", 60), 1),  # the crash took the device with it
        (at(5000, "a", 0), at(10, "b", 400), 0),
        (at(5000, "a", 0), at(10, "b", -1e8), 1),  # the clock was set back to the day of its making: recent
        (at(10, "b", 0), at(20, "b", 1e8), 1),  # the clock was set by the network meanwhile
        (at(10, "b", 0), at(400, "b", 1), 0),
    ],
)
def test_time_is_told_without_a_clock_that_is_right(then: Now, there: Now, count: int) -> None:
    assert cut_short([Begun("run1", "m", 2, then)], "run9", "m", 2, there) == count


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return open_state(tmp_path / "state")


def test_the_third_start_in_five_minutes(state: StateFolder) -> None:
    ups = (0.0, 100.0, 200.0)  # each dies while it loads
    counts = [Starts(state, lambda up=up: at(up)).begin("m", 2) for up in ups]  # type: ignore[misc]
    assert counts == [1, 2, MOST_STARTS]
    assert Starts(state, lambda: at(700)).begin("m", 2) == 1


def test_what_is_told_of_a_load_outlives_the_process(state: StateFolder) -> None:
    first = Starts(state, lambda: at(0))
    first.begin("m", 2)
    first.loaded("m", 2)
    first.begin("other", 1)
    # a crash here is the other one's doing
    assert Starts(state, lambda: at(1)).begin("m", 2) == 1
    assert Starts(state, lambda: at(1)).begin("other", 1) == 2


def test_what_has_ended_as_it_was_told_to_is_no_crash(state: StateFolder) -> None:
    for _ in range(5):
        starts = Starts(state, lambda: at(0))
        assert starts.begin("m", 2) == 1
        starts.loaded("m", 2)
        starts.clear()
    for _ in range(5):
        starts = Starts(state, lambda: at(0))
        assert starts.begin("m", 2) == 1
        starts.ended("m", 2)
    assert not msgspec.json.decode((state.root / "starts.json").read_bytes())


def test_loading_a_version_again_and_again_is_no_crash(state: StateFolder) -> None:
    starts = Starts(state, lambda: at(0))
    assert [starts.begin("m", 2) for _ in range(5)] == [1] * 5


def test_the_file_stays_small(state: StateFolder) -> None:
    starts = Starts(state, lambda: at(0))
    for version in range(230):
        starts.begin("m", version)
    assert len(starts._begun) == 200


@pytest.mark.parametrize("text", [b"", b"\0" * 100, b"{}", b'[{"run": 1}]', b"\xff", b"[" * 100_000])
def test_a_damaged_file_does_not_count(state: StateFolder, text: bytes) -> None:
    (state.root / "starts.json").write_bytes(text)
    assert Starts(state).begin("m", 1) == 1
    assert Starts(state).begin("m", 1) == 2


def test_a_disk_that_cannot_be_written_does_not_keep_a_model_from_being_loaded(
    state: StateFolder, caplog: pytest.LogCaptureFixture
) -> None:
    (state.root / "starts.json").mkdir()
    starts = Starts(state)
    assert starts.begin("m", 1) == 1
    assert "a crash loop would not be seen" in caplog.text
    starts.loaded("m", 1)
    starts.clear()


def test_now_moves_on() -> None:
    first, second = now(), now()
    assert first.boot == second.boot
    assert first.up_s <= second.up_s
