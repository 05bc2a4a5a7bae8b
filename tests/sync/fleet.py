"""A real server process and devices that speak to it over real sockets."""

from __future__ import annotations

import base64
import os
import re
import secrets
import signal
import sqlite3
import subprocess
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import urllib3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgekit.identity import Identity, new_nonce
from edgekit.monitor.schema import (
    AccuracyEstimate,
    DetectorState,
    Event,
    LatencyHistogram,
    WindowReport,
)
from edgekit.process import python_command
from edgekit.sync.database import open_database
from edgekit.sync.store import make_token
from edgekit.sync.wire import ENROLL_PATH, REPORTS_PATH, Enrolment, Reports, SentWindow

BOOT = "boot-1"


def edgekit(*arguments: str) -> list[str]:
    return python_command("-m", "edgekit", *arguments)


class ServerProcess:
    """`edgekit sync serve`, on a free port unless told which."""

    def __init__(self, database: Path, port: int = 0) -> None:
        self.database = database
        self.url_of_database = f"sqlite:///{database}"
        self.log = database.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                edgekit("sync", "serve", "--db", self.url_of_database, "--listen", f"127.0.0.1:{port}"),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        match = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", first)
        assert match, f"{first!r} {self.log.read_text()}"
        self.url = match[1]

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def __enter__(self) -> ServerProcess:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()

    def token(self, *, name: str = "", expires_s: float = 3600.0) -> str:
        database = open_database(self.url_of_database)
        try:
            with database.write() as connection:
                return make_token(connection, name, time.time(), expires_s)
        finally:
            database.close()

    def get(self, path: str, **headers: str) -> Any:
        status, _, body = self.fetch(path, **headers)
        assert status == 200, body
        return msgspec.json.decode(body)

    def fetch(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        with urllib3.PoolManager() as pool:
            reply = pool.request("GET", self.url + path, headers=headers, retries=False)
            return reply.status, dict(reply.headers), reply.data

    def keys(self, device: str) -> list[tuple[str, int]]:
        """Every stored (boot, seq) of a device, duplicates included, read past the server."""
        connection = sqlite3.connect(self.database)
        try:
            rows = connection.execute("SELECT boot, seq FROM windows WHERE device_id = ?", (device,))
            return sorted((str(boot), int(seq)) for boot, seq in rows)
        finally:
            connection.close()

    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


@dataclass
class Device:
    """A device that signs what it is told to sign."""

    server: ServerProcess
    identity: Identity = field(default_factory=lambda: Identity(Ed25519PrivateKey.generate()))
    pool: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(retries=False))

    @property
    def id(self) -> str:
        return self.identity.device_id

    def enrol(self, token: str | None = None, name: str = "bench") -> Device:
        status, reply = self.ask_to_enrol(token or self.server.token(), name)
        assert status == 200, reply
        assert reply["device_id"] == self.id
        return self

    def ask_to_enrol(self, token: str, name: str = "bench") -> tuple[int, dict[str, Any]]:
        key = base64.b64encode(self.identity.public_key).decode()
        return self.post(ENROLL_PATH, msgspec.json.encode(Enrolment(token, key, name)), encoding="")

    def post(
        self,
        path: str,
        body: bytes,
        *,
        encoding: str = "deflate",
        unix_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Send a body as it is; `headers` replace those of a good signature."""
        signed = headers or self.sign(path, body, unix_s=unix_s)
        if encoding:
            signed = {**signed, "Content-Encoding": encoding}
        reply = self.pool.request("POST", self.server.url + path, body=body, headers=signed)
        return reply.status, msgspec.json.decode(reply.data)

    def sign(self, path: str, body: bytes, *, unix_s: float | None = None) -> dict[str, str]:
        now = time.time() if unix_s is None else unix_s
        return self.identity.sign_request("POST", path, body, unix_s=now, nonce=new_nonce())

    def send(self, *reports: WindowReport, sent_unix_s: float | None = None) -> tuple[int, dict[str, Any]]:
        return self.post(REPORTS_PATH, body_of(reports, sent_unix_s=sent_unix_s))


def body_of(reports: Iterable[WindowReport], *, sent_unix_s: float | None = None) -> bytes:
    return envelope(
        [(one.boot, one.seq, msgspec.json.encode(one)) for one in reports], sent_unix_s=sent_unix_s
    )


def envelope(rows: Sequence[tuple[str, int, bytes]], *, sent_unix_s: float | None = None) -> bytes:
    sent = tuple(SentWindow(boot, seq, msgspec.Raw(report)) for boot, seq, report in rows)
    now = time.time() if sent_unix_s is None else sent_unix_s
    return zlib.compress(msgspec.json.encode(Reports(now, sent, agent="0.1.0")))


def window(
    seq: int = 1, *, boot: str = BOOT, start_unix_s: float | None = None, **changes: Any
) -> WindowReport:
    """A window that began a minute ago, unless told otherwise."""
    start = time.time() - 60.0 if start_unix_s is None else start_unix_s
    report = WindowReport(
        boot=boot,
        seq=seq,
        model="digits",
        version=3,
        digest="ab" * 32,
        artifact="tflite-int8",
        runtime="litert",
        device="raspberry-pi-4",
        start_unix_s=start,
        duration_s=60.0,
        n=100,
        calls=100,
        latency=LatencyHistogram(counts=(50, 44, 6), offset=-270, sum_s=0.29),
        confidence=(1, 2, 97),
        classes=(10,) * 10,
        accuracy=AccuracyEstimate(0.97, 0.95, 0.99, 100),
        detectors=(DetectorState("error-probability", 1.5, 17.3, alarm=False, promise="1 a year"),),
        events=(Event(start + 1.0, "started", "the daemon started"),),
    )
    return msgspec.structs.replace(report, **changes)


def fresh_boot() -> str:
    return secrets.token_hex(8)


def environment(state: Path) -> dict[str, str]:
    return {**os.environ, "XDG_STATE_HOME": str(state), "STATE_DIRECTORY": ""}
