from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from edgekit.daemon.http1 import best_head_parser, httptools_head, plain_head
from edgekit.daemon.server import Daemon, Settings, check_shared_memory, new_event_loop, parse_address
from edgekit.daemon.systemd import notify, watchdog_period_s
from edgekit.errors import MachineError, UsageError

pytestmark = pytest.mark.device


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "8080", ":8080", "host:", "host:x", "host:65536", "host:-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_address(text)


def run(settings: Settings) -> None:
    loop = new_event_loop()
    try:

        def stop(_: object) -> None:
            loop.call_soon(daemon.stop)

        daemon = Daemon([], settings, stop)
        loop.run_until_complete(daemon.serve())
    finally:
        loop.close()


def test_a_port_in_use_is_said_so() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(MachineError, match=r"cannot listen on 127\.0\.0\.1:"),
    ):
        run(Settings(http=other.getsockname()[:2]))


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.7", False),
        ("device.local", False),
    ],
)
def test_shared_memory_is_for_this_machine(host: str, local: bool) -> None:
    check_shared_memory(Settings(http=(host, 0)))
    check_shared_memory(Settings(http=None, shared_memory=True))
    if local:
        check_shared_memory(Settings(http=(host, 0), shared_memory=True))
        return
    with pytest.raises(UsageError, match="--shared-memory is for clients on this machine"):
        run(Settings(http=(host, 0), shared_memory=True))


def test_a_dead_servers_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    run(Settings(http=None, socket=path))
    assert not path.exists()


def test_a_living_servers_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(MachineError, match="another server listens"):
            run(Settings(http=None, socket=path))
        assert path.exists()


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="is no socket"):
        run(Settings(http=None, socket=path))
    assert path.read_bytes() == b"precious"


def test_without_the_extra_the_standard_library_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "httptools", None)
    monkeypatch.setitem(__import__("sys").modules, "uvloop", None)
    assert best_head_parser() is plain_head
    loop = new_event_loop()
    assert type(loop).__module__.startswith("asyncio.")
    loop.close()


def test_with_the_extra_it_is_used() -> None:
    pytest.importorskip("httptools")
    pytest.importorskip("uvloop")
    assert best_head_parser() is httptools_head
    loop = new_event_loop()
    assert type(loop).__module__ == "uvloop"
    loop.close()


def test_systemd_is_told(tmp_path: Path) -> None:
    for name in (str(tmp_path / "n"), f"@edgekit-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(name.replace("@", "\0"))
            listener.settimeout(5)
            assert notify("READY=1", {"NOTIFY_SOCKET": name})
            assert listener.recv(100) == b"READY=1"
    assert not notify("READY=1", {})
    assert not notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert not notify("READY=1", {"NOTIFY_SOCKET": "relative"})


def test_the_daemon_tells_systemd_that_it_is_ready_and_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "n"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        run(Settings(http=None, socket=tmp_path / "s"))
        told = {listener.recv(100) for _ in range(3)}
    assert told == {b"READY=1", b"STOPPING=1", b"WATCHDOG=1"}


@pytest.mark.parametrize(
    ("environ", "period_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, None),
    ],
)
def test_the_watchdogs_period(environ: dict[str, str], period_s: float | None) -> None:
    assert watchdog_period_s(environ, pid=7) == period_s
