"""The road as real processes on real sockets: children of the command line, and clients that ask the daemon."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from edgekit.process import Interpreter, python_command
from tests.runtimes.cases import golden

#: How long anything may take before a test gives up; nothing is measured by it.
PATIENCE_S = 60.0


class Child:
    """`edgekit …` in a process group of its own, as a shell starts it; both streams go to a file.

    Args:
        log: The file.
        words: The command line behind `edgekit`.
        interpreter: Another Python to run it; None for this one.
        variables: Added to the environment.
    """

    def __init__(
        self, log: Path, *words: object, interpreter: Interpreter | None = None, **variables: str
    ) -> None:
        self.log = log
        self.began_unix_s = time.time()
        arguments = ["-m", "edgekit", *map(str, words)]
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*interpreter.words, *arguments] if interpreter else python_command(*arguments),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(interpreter.environment if interpreter else {}), **variables},
            )

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait_for(self, words: str) -> str:
        """Wait until it has said a line that matches; return the line's first group."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            ended = not self.running  # before the last look, so that no word is missed
            found = re.search(words, self.said)
            if found:
                return found[1] if found.re.groups else found[0]
            assert not ended, f"it ended with {self.process.returncode}: {self.said}"
            assert time.monotonic() < deadline, f"no {words!r} in: {self.said}"
            time.sleep(0.01)

    def end(self, number: signal.Signals | None = None) -> int:
        """Signal the whole group, as Ctrl-C in a terminal does; return the exit code. Nobody may be left."""
        if number is not None:
            os.killpg(self.process.pid, number)
        code = self.process.wait(PATIENCE_S)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return code
        raise AssertionError("it has left a process behind")


class Client(threading.Thread):
    """Asks the daemon on one connection until that ends, and remembers how it went.

    Attributes:
        answered: Answers with status 200 that came in whole.
        unanswered: Requests whose answer never came: the daemon may have counted them, or not.
        faults: Everything else that came.
    """

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self.answered = self.unanswered = 0
        self.faults: list[str] = []

    def run(self) -> None:
        body = request_body()
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)) as connection:
            while True:
                try:
                    status, ends = ask(connection, body)
                except (OSError, http.client.HTTPException):
                    self.unanswered += 1
                    return
                if status == 200:
                    self.answered += 1
                else:
                    self.faults.append(f"status {status}")
                if ends:
                    return
                time.sleep(0.002)  # two cores are shared with everything that is asked here


def request_body(width: int = 8) -> bytes:
    """Return an infer request for the classifier of `tests.runtimes.bundles`; another width is its error.

    It is the image that the model is surest of: any number of them is no reason for an alarm.
    """
    images, probabilities = golden()
    surest = int(probabilities.max(axis=1).argmax())
    images = images[surest : surest + 1, :, :width]
    x = {
        "name": "image",
        "shape": list(images.shape),
        "datatype": "FP32",
        "data": images.reshape(-1).tolist(),
    }
    return json.dumps({"inputs": [x]}).encode()


def ask(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, bool]:
    """Send one infer request; return the status, and whether the daemon ends the connection."""
    connection.request("POST", "/v2/models/tiny/infer", body)
    response = connection.getresponse()
    response.read()
    return response.status, response.getheader("Connection") == "close"


def start_clients(port: int, count: int = 2) -> list[Client]:
    """Start clients, and wait until each has had an answer."""
    clients = [Client(port) for _ in range(count)]
    for client in clients:
        client.start()
    deadline = time.monotonic() + PATIENCE_S
    while not all(client.answered for client in clients):
        assert time.monotonic() < deadline, [client.faults for client in clients]
        time.sleep(0.005)
    return clients


def total(clients: list[Client]) -> int:
    """Return how many requests were answered so far."""
    return sum(client.answered for client in clients)


def committed(outbox: Path) -> int:
    """Return how many windows were ever committed to an outbox, acknowledged ones too."""
    with closing(sqlite3.connect(f"file:{outbox}?mode=ro", uri=True, timeout=PATIENCE_S)) as db:
        row: Any = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'windows'").fetchone()
        return int(row[0]) if row else 0


def waiting(outbox: Path) -> set[tuple[str, int]]:
    """Return the (boot, seq) of what waits in an outbox, read past its own code."""
    with closing(sqlite3.connect(f"file:{outbox}?mode=ro", uri=True, timeout=PATIENCE_S)) as db:
        return {(str(boot), int(seq)) for boot, seq in db.execute("SELECT boot, seq FROM windows")}
