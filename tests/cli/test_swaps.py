"""`edgekit serve` as a process: versions swapped under load, and versions that would take the daemon with them."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edgekit.client import AnswerError, Client
from edgekit.daemon.repository import install
from edgekit.memory_use import resident_mib
from edgekit.state import StateFolder, open_state
from tests.cli.test_serve import Served
from tests.daemon.versions import good, put_in_front, trigger

pytestmark = pytest.mark.device

REQUEST = json.dumps(
    {"inputs": [{"name": "image", "shape": [1, 8, 8, 1], "datatype": "FP32", "data": [0.5] * 64}]}
).encode()


@pytest.fixture(name="state")
def _state(tmp_path: Path) -> StateFolder:
    return open_state(tmp_path / "state")


@pytest.fixture(name="serve")
def _serve(
    state: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Served]]:
    """Start daemons with ONNX Runtime on one state folder; end what a failed test has left."""
    pytest.importorskip("onnxruntime")
    front = put_in_front(tmp_path / "front")
    monkeypatch.setenv("PYTHONPATH", str(front), prepend=":")
    started: list[Served] = []

    def start(*arguments: object) -> Served:
        words = ("--runtime", "onnxruntime", "--device", "x86-64", "--repository-control")
        served = Served(*map(str, arguments), *words, "--state-dir", str(state.root))
        started.append(served)
        return served

    yield start
    for served in started:
        if served.child.poll() is None:
            served.child.kill()
            served.child.communicate()


def put(state: StateFolder, write: Callable[[Path, int], None], version: int) -> None:
    """Make a version and install it, as a deployment does while the daemon serves."""
    folder = state.root.parent / "new"
    write(folder, version)
    install(folder, state)
    shutil.rmtree(folder)


def client_of(served: Served) -> Client:
    return Client(f"http://127.0.0.1:{served.port}", retries=0)


def index(client: Client) -> dict[str, tuple[str, str]]:
    return {entry["version"]: (entry["state"], entry.get("reason", "")) for entry in client.index()}


class Load:
    """Clients that ask a thousand times a second, if they can; every answer is counted, and everything that is none is kept."""

    def __init__(self, served: Served, clients: int = 3) -> None:
        self.versions: dict[str, int] = {}
        self.failures: list[str] = []
        self._served, self._stop = served, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:  # noqa: PYI034  typing.Self needs Python 3.11
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self) -> None:
        with closing(self._served.connect()) as connection:
            while not self._stop.is_set():
                try:
                    connection.request("POST", "/v2/models/tiny/infer", REQUEST)
                    response = connection.getresponse()
                    answer: Any = json.loads(response.read())
                except (OSError, ValueError, http.client.HTTPException) as error:
                    self.failures.append(repr(error))
                    return
                if response.status != 200:
                    self.failures.append(f"{response.status} {answer}")
                else:
                    version = answer["model_version"]
                    self.versions[version] = self.versions.get(version, 0) + 1
                time.sleep(0.001)  # the trials need the processor too


@pytest.mark.parametrize("swaps", [30, pytest.param(1000, marks=pytest.mark.soak)])
def test_hot_swaps_fail_no_request_and_keep_no_memory(
    serve: Callable[..., Served], state: StateFolder, swaps: int
) -> None:
    put(state, good, 1)
    served = serve().wait_ready()
    taken: list[float] = []  # resident: a share of it would change with what other processes map
    with client_of(served) as client, Load(served) as load:
        for version in range(2, swaps + 2):
            put(state, good, version)
            client.load("tiny")
            assert client.metadata("tiny")["versions"] == [str(version)]
            taken.append(resident_mib(served.child.pid))
        seen = index(client)
    assert load.failures == []
    assert len(load.versions) >= swaps * 0.9, "clients met too few of the versions"
    assert seen[str(swaps + 1)] == ("READY", "")
    assert sorted(path.name for path in (state.repository / "tiny").iterdir()) == sorted(
        [str(swaps), str(swaps + 1), "slots.json"]
    )
    settled, last = max(taken[: max(10, swaps // 20)]), max(taken[-5:])
    tenths = " ".join(f"{taken[i]:.1f}" for i in range(swaps // 10 - 1, swaps, swaps // 10))
    print(f"{swaps} swaps, {sum(load.versions.values())} answers, none failed; MiB: {tenths}")
    assert last < 1.05 * settled
    assert served.end(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize(
    ("end", "says"),
    [("segfault", "killed by SIGSEGV while it was loaded"), ("exit", "ended with exit code 0")],
)
def test_a_version_that_crashes_is_refused_and_the_daemon_serves_on(
    serve: Callable[..., Served], state: StateFolder, end: str, says: str
) -> None:
    put(state, good, 1)
    served = serve().wait_ready()
    put(state, trigger(end), 2)
    with client_of(served) as client, Load(served) as load:
        with pytest.raises(AnswerError, match=says) as refused:
            client.load("tiny")
        assert refused.value.status == 400
        (state_of, reason) = index(client)["2"]
        assert state_of == "UNAVAILABLE"
        assert says in reason
        assert index(client)["1"] == ("READY", "")
    assert (load.failures, set(load.versions)) == ([], {"1"})
    assert served.end(signal.SIGKILL)[0] == -signal.SIGKILL
    again = serve().wait_ready()  # the reason outlives the daemon, and the version is not tried again
    with client_of(again) as client:
        assert says in index(client)["2"][1]
        assert index(client)["1"] == ("READY", "")


def test_a_bundle_on_the_command_line_that_crashes_leaves_the_old_one(
    serve: Callable[..., Served], state: StateFolder, tmp_path: Path
) -> None:
    put(state, good, 1)
    assert serve().wait_ready().end(signal.SIGTERM)[0] == 0
    trigger("segfault")(tmp_path / "two", 2)
    served = serve(tmp_path / "two").wait_ready()
    assert "ready: tiny version 1" in served.said
    code, errors = served.end(signal.SIGTERM)
    assert code == 0
    assert "tiny 2 was tried was killed by SIGSEGV" in errors


def test_a_first_bundle_that_crashes_ends_with_its_reason(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    trigger("segfault")(tmp_path / "one", 1)
    code, errors = serve(tmp_path / "one").end()
    assert code == 4
    assert "tiny 1 was tried was killed by SIGSEGV" in errors
    assert "Traceback" not in errors


def test_a_version_that_is_too_large_beside_the_old_one_is_refused(
    serve: Callable[..., Served], state: StateFolder
) -> None:
    put(state, good, 1)
    first = serve().wait_ready()
    first.end(signal.SIGTERM)
    stored = json.loads((state.repository / "tiny/slots.json").read_bytes())
    allowed = 1.5 * stored["active"]["memory_mib"]
    served = serve("--max-memory", f"{allowed:.1f}").wait_ready()
    put(state, good, 2)
    with client_of(served) as client:
        with pytest.raises(AnswerError, match="tiny 2 is too large"):
            client.load("tiny")
        assert "tiny 2 is too large" in index(client)["2"][1]
        assert index(client)["1"] == ("READY", "")


def test_a_version_that_ends_the_daemon_itself_is_gone_back_from_at_the_third_start(
    serve: Callable[..., Served], state: StateFolder
) -> None:
    """Its trial passes and its load crashes, as where two processes differ: only counting helps."""
    put(state, good, 1)
    assert serve().wait_ready().end(signal.SIGTERM)[0] == 0
    put(state, trigger("later"), 2)
    for _ in range(2):
        assert serve().end()[0] == -signal.SIGSEGV
    served = serve().wait_ready()
    assert "ready: tiny version 1" in served.said
    with client_of(served) as client:
        assert "tiny 2 ended the daemon: 3 starts within 5 minutes" in index(client)["2"][1]
    assert served.end(signal.SIGTERM)[0] == 0


def test_a_version_under_which_the_daemon_crashes_is_gone_back_from_at_the_third_start(
    serve: Callable[..., Served], state: StateFolder
) -> None:
    for version in (1, 2):
        put(state, good, version)
        assert serve().wait_ready().end(signal.SIGTERM)[0] == 0
    for _ in range(2):
        served = serve().wait_ready()
        assert "ready: tiny version 2" in served.said
        served.end(signal.SIGSEGV)
    served = serve().wait_ready()
    assert "ready: tiny version 1" in served.said
    assert served.end(signal.SIGTERM)[0] == 0
    assert "ready: tiny version 1" in serve().wait_ready().said
