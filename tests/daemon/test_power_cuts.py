"""From every state that a power cut may leave, the repository opens with the old version or the new one.

Each scenario is a program that runs the daemon's own code under strace, and what it promises at each point that it
has come to.
"""

from __future__ import annotations

import logging
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from edgekit.bundle import open_bundle, slice_bundle
from edgekit.daemon.lifecycle import Lifecycle
from edgekit.daemon.repository import install, shelved, tidy
from edgekit.daemon.slots import change, filled, read_slots, switched
from edgekit.daemon.starts import Starts
from edgekit.daemon.trial_child import LoadOptions
from edgekit.errors import EdgeKitError, InvalidFileError
from edgekit.monitor.outbox import Outbox
from edgekit.monitor.recorder import Recorder
from edgekit.process import python_command
from edgekit.state import StateFolder, open_state
from tests import bundle_samples as samples
from tests.crash_states import Bench, State, Trace
from tests.system_calls import mark, record

pytestmark = pytest.mark.device


class Held(NamedTuple):
    """What a state folder holds, version numbers with 0 for none.

    Attributes:
        active: The active version.
        candidate: What is to become active.
        recorded: Whether slots are stored.
        starts: Loads that are counted.
        kept: How many artifacts the active version has.
    """

    active: int = 0
    candidate: int = 0
    recorded: bool = False
    starts: int = 0
    kept: int = 0


class Scenario(NamedTuple):
    """A program, and what its promises mean.

    Attributes:
        prepare: Puts what was there before into the state folder, given a folder with bundles.
        run: The program's body.
        broken: Returns what is wrong with what is held once the points given have been come to; empty for nothing.
        damaged: A version that was not whole before.
    """

    prepare: Callable[[StateFolder, Path], None]
    run: Callable[[StateFolder, Path], None]
    broken: Callable[[Held, tuple[str, ...]], str]
    damaged: int = 0


def load(state: StateFolder, bundles: Path) -> None:
    """Try what is the candidate in a child, load it, and switch to it: all that the daemon does to its files."""
    with Outbox(bundles / "outbox.sqlite") as outbox:
        lifecycle = Lifecycle(state, LoadOptions(runtime="null"), Recorder(outbox))
        begin = lifecycle.starts.begin

        def begin_and_say(name: str, version: int) -> int:
            count = begin(name, version)
            mark("begun")
            return count

        lifecycle.starts.begin = begin_and_say  # type: ignore[method-assign]
        lifecycle.starts.loaded = lambda *_: None  # type: ignore[method-assign]  # it takes the entry's place, undurably
        lifecycle.load("quadrants")


def prepared(*versions: int) -> Callable[[StateFolder, Path], None]:
    """Install versions one after another, and have each be active."""

    def prepare(state: StateFolder, bundles: Path) -> None:
        for version in versions:
            install(bundles / str(version), state)
            slots = shelved(state)[0].slots
            assert slots.candidate is not None
            change(state, "quadrants", lambda slots: switched(slots, slots.candidate))  # type: ignore[arg-type]

    return prepare


def prepare_damaged(state: StateFolder, bundles: Path) -> None:
    prepared(1, 2)(state, bundles)
    proven = Lifecycle(state, LoadOptions(runtime="null"), None)._proof("null")  # type: ignore[arg-type]
    active = shelved(state)[0].slots.active
    assert active is not None
    change(state, "quadrants", lambda slots: switched(slots, replace(active, runtime="null", proven=proven)))
    (state.repository / "quadrants/2/golden.npz").write_bytes(b"damaged")


def first(state: StateFolder, bundles: Path) -> None:
    install(bundles / "1", open_state(state.root))
    mark("installed")
    load(state, bundles)
    mark("switched")


def upgrade(state: StateFolder, bundles: Path) -> None:
    install(bundles / "3", open_state(state.root))
    mark("installed")
    load(state, bundles)
    mark("switched")


def completed(state: StateFolder, bundles: Path) -> None:
    install(bundles / "1", state)
    mark("completed")


def completed_without_exchange(state: StateFolder, bundles: Path) -> None:
    from edgekit import atomic

    atomic._rename = lambda *_: False
    completed(state, bundles)


def go_back(state: StateFolder, bundles: Path) -> None:
    load(state, bundles)
    mark("switched")


def prepare_slice(state: StateFolder, bundles: Path) -> None:
    slice_bundle(open_bundle(bundles / "1"), ["tflite-fp32"], bundles / "slice")
    install(bundles / "slice", state)
    change(state, "quadrants", lambda slots: switched(slots, slots.candidate))  # type: ignore[arg-type]


def moved(old: int, new: int, held: Held, marks: tuple[str, ...]) -> str:
    if held.active not in ({new} if "switched" in marks else {old, new}):
        return f"version {held.active} is active"
    if "installed" in marks and not (held.recorded and new in (held.candidate, held.active)):
        return "what was installed is forgotten"
    if "begun" in marks and not held.starts:
        return "the load that was begun is not counted"
    return ""


def grown(held: Held, marks: tuple[str, ...]) -> str:
    if held.active != 1:
        return f"version {held.active} is active"
    return "" if held.kept == 2 or "completed" not in marks else "it is a slice still"


SCENARIOS = {
    "first": Scenario(lambda *_: None, first, lambda held, marks: moved(0, 1, held, marks)),
    "upgrade": Scenario(prepared(1, 2), upgrade, lambda held, marks: moved(2, 3, held, marks)),
    "going back": Scenario(prepare_damaged, go_back, lambda held, marks: moved(2, 1, held, marks), 2),
    "slice": Scenario(prepare_slice, completed, grown),
    "slice without exchange": Scenario(prepare_slice, completed_without_exchange, grown),
}


class Judge:
    """Opens states of a scenario as the daemon does.

    Args:
        scenario: The scenario.
        bench: Where states are shown.
    """

    def __init__(self, scenario: Scenario, bench: Bench) -> None:
        self._scenario, self._bench = scenario, bench
        self._known: dict[Any, int] = {}  # content of a version to how many artifacts it has

    def fault(self, state: State) -> str:
        """Return what is wrong with a state; empty for nothing."""
        self._bench.show(state)
        try:
            held = self._open(StateFolder(self._bench.folder / "state"), state)
        except (EdgeKitError, OSError) as error:
            return str(error)
        return self._scenario.broken(held, state.marks)

    def _open(self, state: StateFolder, shown: State) -> Held:
        """Tidy as the daemon does, and open everything that is visible, with its hashes.

        Raises:
            EdgeKitError: Something is not whole.
        """
        if not state.root.exists():
            return Held()
        tidy(state)
        starts = len(Starts(state)._begun)
        shelf = shelved(state)
        if not shelf:
            return Held(starts=starts)
        name, slots, versions = shelf[0]
        kept = {number: self._whole(state, number, shown) for number in versions}
        stored = read_slots(state.repository / name)
        if stored is None and (state.repository / name / "slots.json").exists():
            raise InvalidFileError("the slots are damaged")
        for version in filled(slots):
            if version.version not in kept:
                raise InvalidFileError(f"version {version.version} is in a slot, and nowhere else")
        active, candidate = slots.active, slots.candidate
        return Held(
            active=active.version if active else 0,
            candidate=candidate.version if candidate and not candidate.reason else 0,
            recorded=stored is not None,
            starts=starts,
            kept=kept[active.version] if active else 0,
        )

    def _whole(self, state: StateFolder, number: int, shown: State) -> int:
        """Return how many artifacts a version has; what was opened before, byte for byte, is not opened again."""
        prefix = f"state/repository/quadrants/{number}/"
        content = tuple((path, data) for path, data in shown.tree.items() if path.startswith(prefix))
        if not content or content not in self._known:  # none: it was moved aside, and is back
            try:
                self._known[content] = len(open_bundle(state.repository / "quadrants" / str(number)).kept)
            except InvalidFileError:
                if number != self._scenario.damaged:
                    raise
                self._known[content] = 0
        return self._known[content]


class Recorded(NamedTuple):
    """A scenario's program, recorded, and the judge of what a cut would have left."""

    trace: Trace
    judge: Judge
    bundles: Path


@pytest.fixture(scope="module", params=SCENARIOS, name="recorded")
def _recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    folder = tmp_path_factory.mktemp("scenario")
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with TemporaryDirectory(dir=memory) as shown:
        judge = Judge(SCENARIOS[request.param], Bench(Path(shown) / "root"))
        yield Recorded(trace(request.param, folder), judge, folder / "bundles")


def trace(name: str, folder: Path) -> Trace:
    """Prepare a scenario and record its program."""
    bundles, root = folder / "bundles", folder / "root"
    bundles.mkdir()
    root.mkdir()
    for version in (1, 2, 3):
        samples.write(bundles / str(version), version=version)
    state = StateFolder(root / "state")
    if name != "first":
        SCENARIOS[name].prepare(open_state(state.root), bundles)
    code = "import sys; from tests.daemon.test_power_cuts import main; main(*sys.argv[1:])"
    return record(python_command("-c", code, name, str(root / "state"), str(bundles)), root)


def main(name: str, state: str, bundles: str) -> None:
    """Run a scenario's program: what is recorded."""
    logging.disable()
    SCENARIOS[name].run(StateFolder(Path(state)), Path(bundles))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of damaged files are told of in thousands of lines."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def test_every_state_has_the_old_or_the_new(recorded: Recorded) -> None:
    seen = check_all(recorded, drawn=20)
    assert seen >= 10


def test_without_any_one_fsync_a_state_has_neither_or_breaks_a_promise(recorded: Recorded) -> None:
    assert recorded.judge.fault(recorded.trace.last()) == ""
    syncs = recorded.trace.syncs()
    assert len(syncs) >= 4
    for index in syncs:
        less = recorded.trace.without(index)
        chance = random.Random(index)
        assert any(recorded.judge.fault(state) for state in less.states(chance, drawn=20)), (
            f"{recorded.trace.operations[index]} could be left out, and nothing would show it"
        )


def check_all(recorded: Recorded, *, drawn: int) -> int:
    """Open every state; return how many there were."""
    seen = 0
    for state in recorded.trace.states(random.Random(seen), drawn=drawn):
        fault = recorded.judge.fault(state)
        assert not fault, f"{fault}, after {state.after} operations, {state.marks}: {sorted(state.tree)}"
        seen += 1
    return seen


_SEEN: list[int] = []


@pytest.mark.soak
def test_ten_thousand_states(recorded: Recorded) -> None:
    _SEEN.append(check_all(recorded, drawn=1000))
    print(f"{_SEEN[-1]} states, {sum(_SEEN)} so far")


@pytest.mark.soak
def test_there_were_ten_thousand_states() -> None:
    assert len(_SEEN) == len(SCENARIOS), "run the whole file"
    assert sum(_SEEN) >= 10_000


@pytest.mark.parametrize("count", [2, pytest.param(36, marks=pytest.mark.soak)])
def test_the_daemon_starts_from_a_sample_of_the_states(count: int, tmp_path: Path) -> None:
    recorded = trace("upgrade", tmp_path)
    states = list(recorded.states(random.Random(5), drawn=20))
    for number, state in enumerate(random.Random(count).sample(states, count)):
        bench = Bench(tmp_path / f"shown{number}")
        bench.show(state)
        found = ready_version(bench.folder / "state")
        assert found == 3 or (found == 2 and "installed" not in state.marks), state.marks


def ready_version(state: Path) -> int:
    """Start the daemon, read which version it says is ready, and cut it off."""
    words = ("serve", "--runtime", "null", "--http", "127.0.0.1:0", "--state-dir", str(state))
    with subprocess.Popen(
        python_command("-m", "edgekit", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            for line in child.stdout:
                if line.startswith("ready: "):
                    return int(line.partition("version ")[2].partition(",")[0])
            raise AssertionError(child.stderr.read())
        finally:
            child.kill()
