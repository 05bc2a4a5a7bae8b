"""Killed at any moment, neither side loses an acknowledged window or has one twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import urllib3

from edgekit.identity import open_identity
from edgekit.monitor.outbox import Outbox
from edgekit.state import StateFolder
from tests.sync.fleet import BOOT, Device, ServerProcess, edgekit, fresh_boot, window

KILLS = 6


class _Sender(threading.Thread):
    """Sends ever new windows in batches of three, each batch until it is acknowledged."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device, self.acked, self.stopping = device, set[tuple[str, int]](), threading.Event()
        self.first = 1

    def run(self) -> None:
        while not self.stopping.is_set():
            batch = [window(seq) for seq in range(self.first, self.first + 3)]
            try:
                status, reply = self.device.send(*batch)
            except urllib3.exceptions.HTTPError:
                time.sleep(0.02)
                continue
            if status == 200:
                self.acked |= {(boot, seq) for boot, seq in reply["acked"]}
                self.first += 3


def test_server_killed_during_ingest_keeps_every_acknowledged_window_once(tmp_path: Path) -> None:
    chance = random.Random(7)
    path = tmp_path / "sync.sqlite"
    server = ServerProcess(path)
    senders = [_Sender(Device(server).enrol()) for _ in range(3)]
    for sender in senders:
        sender.start()
    try:
        for _ in range(KILLS):
            progress = sum(len(sender.acked) for sender in senders)
            while sum(len(sender.acked) for sender in senders) < progress + 30:
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 0.05))
            server.kill()
            for sender in senders:
                _assert_exactly_once(server, sender)
            server = ServerProcess(path)
            for sender in senders:
                sender.device.server = server
    finally:
        for sender in senders:
            sender.stopping.set()
        for sender in senders:
            sender.join()
            sender.device.pool.clear()
        server.kill()
    for sender in senders:
        _assert_exactly_once(server, sender)
        assert len(sender.acked) >= 3 * KILLS


def _assert_exactly_once(server: ServerProcess, sender: _Sender) -> None:
    acked = set(sender.acked)  # before what is stored is read: later acks are of no interest
    stored = server.keys(sender.device.id)
    assert len(stored) == len(set(stored))
    assert acked <= set(stored)


def test_agent_killed_while_sending_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    chance = random.Random(11)
    state = StateFolder(tmp_path / "device")
    state.root.mkdir()
    boot, total = fresh_boot(), 3000
    with Outbox(state.outbox, boot=boot) as outbox:
        outbox.append(*(window(seq, boot=boot) for seq in range(1, total + 1)))
    with ServerProcess(tmp_path / "sync.sqlite") as server:
        command = edgekit("agent", "--sync", server.url, "--state-dir", str(state.root), "--once")
        environment = {**os.environ, "EDGEKIT_ENROLL_TOKEN": server.token()}
        kills = 0
        for _ in range(KILLS):
            agent = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
            device_rows = _wait_for_more(server, state, agent)
            time.sleep(chance.uniform(0.0, 0.02))
            agent.send_signal(signal.SIGKILL)
            kills += agent.wait(30) == -signal.SIGKILL
            _assert_nothing_lost(server, state, boot, total)
            if device_rows == total:
                break
        assert kills >= 1
        last = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert last.returncode == 0, last.stderr
        assert server.keys(open_identity(state).device_id) == [(boot, seq) for seq in range(1, total + 1)]
    with Outbox(state.outbox) as outbox:
        assert outbox.depth()[0] == 0


def _wait_for_more(server: ServerProcess, state: StateFolder, agent: subprocess.Popen[bytes]) -> int:
    """Wait until the agent has brought something new to the server, or has ended."""
    before = _stored(server, state)
    while agent.poll() is None and _stored(server, state) == before:
        time.sleep(0.002)
    return _stored(server, state)


def _stored(server: ServerProcess, state: StateFolder) -> int:
    if not (state.identity / "device.pem").exists():
        return 0
    return len(server.keys(open_identity(state).device_id))


def _assert_nothing_lost(server: ServerProcess, state: StateFolder, boot: str, total: int) -> None:
    with Outbox(state.outbox) as outbox:
        waiting = {key[:2] for key in outbox.read(total, 1 << 30)}
    stored = server.keys(open_identity(state).device_id)
    assert len(stored) == len(set(stored))
    assert waiting | set(stored) == {(boot, seq) for seq in range(1, total + 1)}


def test_sigterm_ends_the_server_cleanly(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "sync.sqlite") as server:
        device = Device(server).enrol()
        assert device.send(window(1))[0] == 200
        device.pool.clear()
        assert server.stop() == 0
        assert server.keys(device.id) == [(BOOT, 1)]
        assert server.log.read_text() == ""
