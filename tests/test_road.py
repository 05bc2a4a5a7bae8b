"""The whole road over real processes and sockets: daemon, agent, sync server, ended politely and killed."""

from __future__ import annotations

import http.client
import json
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit.errors import InvalidFileError
from edgekit.monitor.outbox import Outbox
from edgekit.process import python_command
from edgekit.state import StateFolder
from tests.cli.running import edgekit as command
from tests.road import (
    PATIENCE_S,
    Child,
    Client,
    ask,
    committed,
    request_body,
    start_clients,
    total,
    waiting,
)
from tests.runtimes.bundles import FILES, write_tiny
from tests.runtimes.cases import golden
from tests.sync.fleet import ServerProcess, window

BOOT_OF_BACKLOG = "boot-of-yesterday"

Start = Callable[..., Child]


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "device")
    folder.root.mkdir()
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "bundle", ("tflite-fp32",)).root


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start children, each with a log of its own; end what a failed test has left."""
    children: list[Child] = []

    def start_one(*words: object, **variables: str) -> Child:
        child = Child(tmp_path / f"child-{len(children)}.log", *words, interpreter=None, **variables)
        children.append(child)
        return child

    yield start_one
    for child in children:
        if child.running:
            child.end(signal.SIGKILL)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "sync.sqlite") as running:
        yield running


def serve(start: Start, state: StateFolder, *words: object) -> tuple[Child, int]:
    """Start the daemon with windows of one second; return it, ready, and its port."""
    child = start("serve", *words, "--http", "127.0.0.1:0", "--window", "1", "--state-dir", state.root)
    child.wait_for("ready: tiny version 3")
    return child, int(child.wait_for(r"http://127\.0\.0\.1:(\d+)"))


def agent(start: Start, state: StateFolder, server: ServerProcess, *words: str, token: str = "") -> Child:
    where = ("--sync", server.url, "--state-dir", state.root, "--interval", "0.1")
    return start("agent", *where, *words, EDGEKIT_ENROLL_TOKEN=token)


def join(clients: list[Client]) -> None:
    for client in clients:
        client.join(PATIENCE_S)
        assert not client.is_alive()
        assert client.faults == []


def wait_until(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def stored(server: ServerProcess, device: str) -> list[dict[str, Any]]:
    windows: list[dict[str, Any]] = server.get(f"/api/v1/devices/{device}/windows?limit=2000")["windows"]
    return windows


def enrolled(child: Child) -> str:
    """Return the device's id, once the agent has it."""
    return child.wait_for(r"enrolled as (\S+)")


# Ended politely.


def test_every_answer_arrives_at_the_server(
    start: Start, server: ServerProcess, state: StateFolder, bundle: Path
) -> None:
    enroll = subprocess.run(
        python_command("-m", "edgekit", "fleet", "enroll", "--db", server.url_of_database, "--name", "gate 7", "--json"),
        capture_output=True, text=True, check=True, timeout=PATIENCE_S,
    )  # fmt: skip
    sender = agent(start, state, server, token=json.loads(enroll.stdout)["token"])
    daemon, port = serve(start, state, bundle)
    device = enrolled(sender)
    clients = start_clients(port)
    ask_wrongly(port)
    wait_until(lambda: len(stored(server, device)) >= 2, "no two windows at the server")
    assert daemon.end(signal.SIGTERM) == 0
    join(clients)
    assert sender.end(signal.SIGTERM) == 0
    assert agent(start, state, server, "--once").end() == 0

    windows = stored(server, device)
    assert sum(one["n"] for one in windows) == sum(one["calls"] for one in windows) == total(clients) > 0
    assert {(one["model"], one["version"], one["errors"]) for one in windows} == {("tiny", 3, 0)}
    assert {one["digest"] for one in windows} == {(bundle / "manifest.sha256").read_text().split()[0]}
    assert [one["seq"] for one in windows] == list(range(1, len(windows) + 1))
    assert all(one["p50_s"] > 0 and one["accuracy"]["n"] > 0 for one in windows if one["n"])
    (shown,) = server.get("/api/v1/devices")["devices"]
    assert (shown["id"], shown["name"], shown["state"]) == (device, "gate 7", "ok")
    assert (shown["lost_windows"], shown["queued_windows"]) == (0, 0)
    assert [one["kind"] for one in server.get("/api/v1/events")["events"]] == ["started"]
    status, _, page = server.fetch(f"/devices/{device}")
    assert status == 200
    assert b"gate 7" in page
    assert server.stop() == 0


def ask_wrongly(port: int) -> None:
    """Ask what is refused: it must not be counted as answered."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        assert [ask(connection, request_body(width=7))[0] for _ in range(5)] == [400] * 5


# The device's processes killed.


@dataclass
class Life:
    """One daemon from its start to its end.

    Attributes:
        proven: Requests that were answered before a window was closed that is certainly on disk.
    """

    began_unix_s: float
    clients: list[Client]
    committed_before: int
    ended_unix_s: float = 0.0
    proven: int = 0
    _seen: list[tuple[int, int]] = field(default_factory=list)

    def look(self, windows: int) -> None:
        """Note the answers so far, where `windows` were committed by now.

        The first window committed after a look may have been closed before it; the second was not.
        """
        answers = total(self.clients)
        self.proven = max([self.proven, *(n for n, before in self._seen if windows >= before + 2)])
        self._seen = [(n, before) for n, before in self._seen if windows < before + 2]
        self._seen.append((answers, windows))


def watch(life: Life, state: StateFolder, windows: int, delay_s: float) -> None:
    """Let a daemon live until it has committed so many windows, and some time longer."""

    def lived() -> bool:
        now = committed(state.outbox)
        life.look(now)
        return now >= life.committed_before + windows

    wait_until(lived, "no windows are committed")
    deadline = time.monotonic() + delay_s
    while time.monotonic() < deadline:
        lived()
        time.sleep(0.01)


def live(start: Start, state: StateFolder, *words: object) -> tuple[Child, Life]:
    before = committed(state.outbox)
    daemon, port = serve(start, state, *words)
    return daemon, Life(daemon.began_unix_s, start_clients(port), before)


def test_daemon_and_agent_killed_under_traffic(
    start: Start, server: ServerProcess, state: StateFolder, bundle: Path
) -> None:
    chance = random.Random(20)
    lives: list[Life] = []
    Outbox(state.outbox).close()
    sender = agent(start, state, server, token=server.token())
    device = enrolled(sender)
    for windows in (0, 3, 1, 2):
        daemon, life = live(start, state, *([] if lives else [bundle]))
        lives.append(life)
        watch(life, state, windows, chance.uniform(0.0, 1.0))
        if windows == 3:
            assert sender.end(signal.SIGKILL) == -signal.SIGKILL
            sender = agent(start, state, server)
            watch(life, state, windows, chance.uniform(0.0, 0.5))
        assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
        life.ended_unix_s = time.time()
        join(life.clients)
    daemon, last = live(start, state)
    watch(last, state, 1, 0.0)
    assert daemon.end(signal.SIGTERM) == 0
    last.ended_unix_s = time.time()
    join(last.clients)
    assert sender.end(signal.SIGTERM) == 0
    assert agent(start, state, server, "--once").end() == 0

    check_what_is_left(server, state, device, kills=len(lives))
    check_counts(stored(server, device), lives, last)


def check_what_is_left(server: ServerProcess, state: StateFolder, device: str, kills: int) -> None:
    """The outbox opens and is empty; nothing is there twice; one open window is lost, and counted, per kill."""
    with Outbox(state.outbox) as outbox:
        assert outbox.depth() == (0, 0)
        assert outbox.lost() == kills
        assert outbox.take_events() == ()
    assert not list(state.root.glob("*.damaged*"))
    keys = server.keys(device)
    assert len(keys) == len(set(keys)) == committed(state.outbox)
    reply = server.get(f"/api/v1/devices/{device}")
    assert (reply["stored_windows"], reply["missing_windows"]) == (len(keys), 0)
    assert reply["device"]["lost_windows"] == kills
    told = [one["text"] for one in server.get("/api/v1/events")["events"] if one["kind"] == "lost"]
    # a daemon that is killed in its first window takes with it what it had to tell, but not the count
    assert 1 <= len(told) <= kills
    assert set(told) == {"1 open window(s) were lost when the process stopped without closing them"}


def check_counts(windows: list[dict[str, Any]], killed: list[Life], last: Life) -> None:
    """No answer is counted twice, and only those of a killed daemon's open window are missing."""
    boots: dict[int, set[str]] = {}
    counted: Counter[int] = Counter()
    for one in windows:
        whose = lived_at(one["device_start_unix_s"], [*killed, last])
        boots.setdefault(whose, set()).add(one["boot"])
        counted[whose] += one["n"]
    assert [len(names) for names in boots.values()] == [1] * len(set.union(*boots.values()))
    for number, life in enumerate(killed):
        # a request may be counted on disk and its answer still be on the way when the daemon is killed
        unanswered = sum(client.unanswered for client in life.clients)
        assert life.proven <= counted[number] <= total(life.clients) + unanswered
    assert counted[len(killed)] == total(last.clients)
    assert sum(life.proven for life in killed) > 0


def lived_at(unix_s: float, lives: list[Life]) -> int:
    (whose,) = [n for n, life in enumerate(lives) if life.began_unix_s <= unix_s <= life.ended_unix_s]
    return whose


# The server killed.


def test_server_killed_during_ingest(start: Start, tmp_path: Path, state: StateFolder, bundle: Path) -> None:
    chance = random.Random(3)
    backlog = {(BOOT_OF_BACKLOG, seq) for seq in range(1, 9_001)}
    with Outbox(state.outbox, boot=BOOT_OF_BACKLOG) as outbox:
        outbox.append(*(window(seq, boot=boot) for boot, seq in sorted(backlog)))
    server = ServerProcess(tmp_path / "sync.sqlite")
    port = int(server.url.rpartition(":")[2])
    try:
        daemon, http_port = serve(start, state, bundle)
        clients = start_clients(http_port)
        sender = agent(start, state, server, token=server.token())
        device = enrolled(sender)
        for _ in range(3):
            wait_for_more(server, device)
            time.sleep(chance.uniform(0.0, 0.1))
            server.kill()
            waits = waiting(state.outbox)  # first: what is acknowledged meanwhile is stored already
            keys = server.keys(device)
            assert len(keys) == len(set(keys))
            assert backlog <= waits | set(keys)
            assert backlog & waits, "it was not killed during ingest: the backlog is too short"
            server = ServerProcess(tmp_path / "sync.sqlite", port)
        assert sender.end(signal.SIGTERM) == 0
        assert daemon.end(signal.SIGTERM) == 0
        join(clients)
        assert agent(start, state, server, "--once").end() == 0
        assert not waiting(state.outbox)
        live_keys = check_backlog(server.keys(device), backlog)
        assert len(live_keys) == committed(state.outbox) - len(backlog)
        live = [one for one in stored(server, device) if one["boot"] != BOOT_OF_BACKLOG]
        assert sorted((one["boot"], one["seq"]) for one in live) == live_keys
        assert sum(one["n"] for one in live) == total(clients)
        assert server.get(f"/api/v1/devices/{device}")["missing_windows"] == 0
    finally:
        server.kill()


def wait_for_more(server: ServerProcess, device: str) -> None:
    before = len(server.keys(device))
    wait_until(lambda: len(server.keys(device)) > before, "nothing arrives at the server")


def check_backlog(keys: list[tuple[str, int]], backlog: set[tuple[str, int]]) -> list[tuple[str, int]]:
    """Check that the backlog is there once; return the other keys."""
    assert [key for key in keys if key[0] == BOOT_OF_BACKLOG] == sorted(backlog)
    return [key for key in keys if key[0] != BOOT_OF_BACKLOG]


# One flipped byte.

BUNDLE_FILES = sorted(
    ["manifest.json", "manifest.sha256", "golden.npz", "reference.json"]
    + [f"artifacts/{name}/{file}" for name, files in FILES.items() for file in files]
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a bundle of every format; tests put back what they change."""
    root = write_tiny(tmp_path_factory.mktemp("whole") / "tiny").root
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == BUNDLE_FILES
    return root


@pytest.fixture(params=BUNDLE_FILES)
def flipped(request: pytest.FixtureRequest, whole: Path) -> Iterator[str]:
    """Flip one bit somewhere in one file of the bundle; give the file's name."""
    path = whole / request.param
    right = path.read_bytes()
    chance = random.Random(request.param)
    wrong = bytearray(right)
    wrong[chance.randrange(len(wrong))] ^= 1 << chance.randrange(8)
    path.write_bytes(wrong)
    yield request.param
    path.write_bytes(right)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    np.savez(tmp_path / "images.npz", image=golden()[0])
    return tmp_path / "images.npz"


def test_a_flipped_byte_is_refused_by_every_command(
    flipped: str,
    whole: Path,
    images: Path,
    state: StateFolder,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for words in (
        ("verify", whole),
        ("run", whole, images),
        ("serve", whole, "--http", "127.0.0.1:0", "--state-dir", state.root),
    ):
        done = command(capsys, monkeypatch, *words)
        assert (done.code, done.out) == (6, ""), words
        assert flipped in done.err
        assert done.err.count("\n") == 1
    assert not list(state.repository.rglob("manifest.json"))  # nothing of it was installed
    with pytest.raises(InvalidFileError, match=re.escape(flipped)) as refused:
        edgekit.load(whole, state_dir=state.root)
    assert refused.value.exit_code == 6


def test_the_same_commands_take_the_whole_bundle(
    whole: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(capsys, monkeypatch, "verify", whole, "--runtime", "litert").code == 0
    assert command(capsys, monkeypatch, "run", whole, images, "--runtime", "litert").code == 0


@pytest.mark.parametrize("name", ["artifacts/tflite-fp32/tiny_fp32.tflite"])
def test_a_flipped_byte_is_refused_by_a_real_daemon(
    start: Start, state: StateFolder, bundle: Path, name: str
) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 3] ^= 16
    (bundle / name).write_bytes(data)
    daemon = start("serve", bundle, "--http", "127.0.0.1:0", "--state-dir", state.root)
    assert daemon.end() == 6
    assert name in daemon.said
    assert daemon.said.count("\n") == 1


# A device that this machine is not.


def test_a_jetson_is_served_here_only_by_fallback(start: Start, state: StateFolder, whole: Path) -> None:
    words = ("serve", whole, "--device", "jetson-orin-nano", "--http", "127.0.0.1:0")
    refused = start(*words, "--state-dir", state.root)
    assert refused.end() == 5
    assert "onnxruntime has no TensorrtExecutionProvider here" in refused.said
    assert "--allow-fallback" in refused.said
    assert "Traceback" not in refused.said
    daemon, port = serve(start, state, whole, "--device", "jetson-orin-nano", "--allow-fallback")
    assert "ready: tiny version 3, onnx-fp32 on onnxruntime for jetson-orin-nano\n" in daemon.said
    for provider in ("TensorrtExecutionProvider", "CUDAExecutionProvider"):
        assert f"onnxruntime has no {provider} here: stepping down\n" in daemon.said
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        assert ask(connection, request_body())[0] == 200
    assert daemon.end(signal.SIGTERM) == 0


# Ctrl-C.


def test_ctrl_c_ends_the_daemon_under_traffic(start: Start, state: StateFolder, bundle: Path) -> None:
    unix = state.root / "edgekit.sock"
    daemon, port = serve(start, state, bundle, "--socket", unix)
    clients = start_clients(port)
    assert daemon.end(signal.SIGINT) == 130
    join(clients)
    assert "Traceback" not in daemon.said
    assert not unix.exists()
    check_tidy(state.root)
    with Outbox(state.outbox) as outbox:
        rows = outbox.read(100)
        assert outbox.lost() == 0
    assert sum(json.loads(report)["n"] for _, _, report in rows) == total(clients)
    again, _ = serve(start, state)
    assert again.end(signal.SIGINT) == 130


def test_ctrl_c_while_the_model_is_loaded(start: Start, state: StateFolder, bundle: Path) -> None:
    daemon = start("serve", bundle, "--http", "127.0.0.1:0", "--state-dir", state.root)
    daemon.wait_for("listening on")  # before it loads
    assert daemon.end(signal.SIGINT) == 130
    assert "Traceback" not in daemon.said
    assert "destroyed" not in daemon.said  # asyncio's word for a task that nobody ended
    check_tidy(state.root)
    with Outbox(state.outbox) as outbox:
        assert outbox.lost() == 0


def test_ctrl_c_ends_agent_and_server(start: Start, tmp_path: Path, state: StateFolder) -> None:
    database = tmp_path / "server" / "sync.sqlite"
    database.parent.mkdir()
    words = ("sync", "serve", "--db", f"sqlite:///{database}", "--listen")
    fleet = start(*words, "127.0.0.1:0")
    url = fleet.wait_for(r"listening on (\S+)")
    token = subprocess.run(
        python_command("-m", "edgekit", "fleet", "enroll", "--db", f"sqlite:///{database}"),
        capture_output=True, text=True, check=True, timeout=PATIENCE_S,
    ).stdout.strip()  # fmt: skip
    where = ("agent", "--sync", url, "--state-dir", state.root)
    sender = start(*where, EDGEKIT_ENROLL_TOKEN=token)
    enrolled(sender)
    assert sender.end(signal.SIGINT) == 130
    assert sender.said.endswith("edgekit: interrupted\n")
    assert "Traceback" not in sender.said
    check_tidy(state.root)

    assert fleet.end(signal.SIGINT) == 130
    assert "Traceback" not in fleet.said
    assert [path.name for path in database.parent.iterdir()] == ["sync.sqlite"]
    # whoever waits for a server that is gone hears Ctrl-C too
    alone = start(*where)
    wait_until(lambda: "cannot be reached" in alone.said, "it does not notice")
    assert alone.end(signal.SIGINT) == 130
    assert "Traceback" not in alone.said
    # and the address is free again
    again = start(*words, url.removeprefix("http://"))
    again.wait_for("listening on")
    assert start(*where, "--once").end() == 0
    assert again.end(signal.SIGINT) == 130


def check_tidy(folder: Path) -> None:
    """No half-written file, and no log of a database that somebody did not close."""
    names = [path.name for path in folder.rglob("*")]
    assert not [name for name in names if name.endswith((".tmp", "-wal", "-shm"))], names
