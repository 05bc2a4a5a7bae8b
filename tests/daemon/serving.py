"""A daemon in a thread of this process, models with real sessions, and a client that speaks raw bytes."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgekit.bundle import Bundle
from edgekit.daemon.http1 import HeadParser, httptools_head, plain_head
from edgekit.daemon.lane import Lane
from edgekit.daemon.library import Offer
from edgekit.daemon.server import Daemon, Listening, Settings, new_event_loop
from edgekit.manifest import Golden, Manifest, Plan, SourceInfo
from edgekit.model import Model
from edgekit.monitor.monitor import ModelMonitor
from edgekit.runtimes.base import Session
from edgekit.tensors import TensorSpec

Array = np.ndarray[Any, Any]
Function = Callable[[Mapping[str, Array]], dict[str, Array]]


class FunctionSession(Session):
    """Runs a Python function: a session whose model is known to the last bit."""

    def __init__(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], function: Function
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.placement = {"python": "everything"}
        self.function, self.closed = function, False

    def _run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        return self.function(feed)

    def close(self) -> None:
        self.closed = True


def model_of(
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    function: Function,
    *,
    version: int = 1,
    task: str = "other",
    labels: Sequence[str] = (),
) -> Model:
    """Return a real model around a function."""
    plan = Plan(device="x86-64", artifact="onnx-fp32", runtime="onnxruntime")
    manifest = Manifest(
        name=name,
        version=version,
        task=task,  # type: ignore[arg-type]
        labels=tuple(labels),
        source=SourceInfo(kind="onnx", sha256="0" * 64),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        artifacts={},
        plan=plan,
        golden=Golden(n=0, origin="synthetic"),
        files={},
    )
    digest = hashlib.sha256(name.encode()).hexdigest()
    model = Model(
        Bundle(Path(), manifest, digest, frozenset()), plan, FunctionSession(inputs, outputs, function)
    )
    model.monitor = ModelMonitor(
        model=name,
        version=version,
        digest=digest,
        artifact=plan.artifact,
        runtime=plan.runtime,
        device=plan.device,
        task=task,
        reference=None,
    )
    return model


def affine(name: str = "affine", version: int = 1) -> Model:
    """y = 2x + 1 for float32 x [N, 4], and the row sums of x."""
    return model_of(
        name,
        [TensorSpec("x", "float32", (-1, 4))],
        [TensorSpec("y", "float32", (-1, 4)), TensorSpec("total", "float32", (-1,))],
        lambda feed: {"y": feed["x"] * 2 + 1, "total": feed["x"].sum(axis=1)},
        version=version,
    )


def echo(dtype: str, shape: tuple[int, ...] = (-1, -1), name: str = "") -> Model:
    """y = x."""
    return model_of(
        name or f"echo-{dtype}",
        [TensorSpec("x", dtype, shape)],
        [TensorSpec("y", dtype, shape)],
        lambda feed: {"y": feed["x"]},
    )


def adder() -> Model:
    """total = a + b for float32 a [N, 2] and int64 b [N, 2]."""
    return model_of(
        "adder",
        [TensorSpec("a", "float32", (-1, 2)), TensorSpec("b", "int64", (-1, 2))],
        [TensorSpec("total", "float64", (-1, 2))],
        lambda feed: {"total": feed["a"].astype(np.float64) + feed["b"]},
    )


def slow(seconds: float, name: str = "slow") -> Model:
    """y = x, after a while."""

    def function(feed: Mapping[str, Array]) -> dict[str, Array]:
        time.sleep(seconds)
        return {"y": feed["x"]}

    return model_of(
        name, [TensorSpec("x", "float32", (-1, 1))], [TensorSpec("y", "float32", (-1, 1))], function
    )


class Flavour(NamedTuple):
    """A way to run the daemon: which head parser and which event loop."""

    name: str
    parse_head: HeadParser
    new_loop: Callable[[], asyncio.AbstractEventLoop]


FAST = Flavour("httptools+uvloop", httptools_head, new_event_loop)
PLAIN = Flavour("stdlib", plain_head, asyncio.new_event_loop)


class Running:
    """A daemon that serves in a thread until the block ends."""

    def __init__(
        self,
        models: Sequence[Model] | Sequence[Offer],
        flavour: Flavour,
        folder: Path,
        **settings: Any,
    ) -> None:
        offers = [
            given if isinstance(given, Offer) else Offer(given.name, lambda given=given: given)  # type: ignore[misc]
            for given in models
        ]
        defaults = {"http": ("127.0.0.1", 0), "socket": folder / "s.sock", "parse_head": flavour.parse_head}
        shelf = settings.pop("shelf", None)
        self.daemon = Daemon(offers, Settings(**{**defaults, **settings}), self._announced, shelf)
        self.listening: Listening
        self.error: BaseException | None = None
        self.loop = flavour.new_loop()
        self._expected = len(offers)
        self._lanes = 0
        self._open, self._ready = threading.Event(), threading.Event()
        self.thread_name = f"daemon-{flavour.name}"
        self._thread = threading.Thread(target=self._run, name=self.thread_name)

    def _announced(self, news: Listening | Lane) -> None:
        if isinstance(news, Listening):
            self.listening = news
            self._open.set()
        else:
            self._lanes += 1
            if self._lanes == self._expected:
                self._ready.set()

    def _run(self) -> None:
        try:
            self.loop.run_until_complete(self.daemon.serve())
        except BaseException as error:  # noqa: BLE001  handed to the test
            self.error = error
        finally:
            self.loop.close()
            self._open.set()
            self._ready.set()

    def start(self, *, wait_ready: bool = True) -> Running:
        self._thread.start()
        assert self._open.wait(20)
        if wait_ready:
            assert self._ready.wait(20)
            if self.error is not None:
                raise self.error
        return self

    def __enter__(self) -> Running:  # noqa: PYI034  typing.Self needs Python 3.11
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.daemon.stop)
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def address(self) -> tuple[str, int]:
        assert self.listening.http is not None
        return self.listening.http

    def connect(self, *, unix: bool = False) -> socket.socket:
        if unix:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(20)
            connection.connect(str(self.listening.socket))
            return connection
        return socket.create_connection(self.address, timeout=20)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request on a connection of its own."""
        client = http.client.HTTPConnection(*self.address, timeout=20)
        try:
            client.request(method, path, body, dict(headers or {}))
            response = client.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            client.close()

    def infer(self, model: str, message: object, tensors: bytes = b"", **headers: str) -> Answer:
        """Send one inference request: `message` as JSON (unless it is bytes), then the binary tensors."""
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        if tensors:
            headers = {"Inference-Header-Content-Length": str(len(data)), **headers}
        return self.ask("POST", f"/v2/models/{model}/infer", data + tensors, headers)


class Answer(NamedTuple):
    """A reply."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        length = self.headers.get("Inference-Header-Content-Length")
        return json.loads(self.body if length is None else self.body[: int(length)])

    @property
    def binary(self) -> bytes:
        return self.body[int(self.headers["Inference-Header-Content-Length"]) :]

    @property
    def error(self) -> str:
        message = self.json["error"]
        assert isinstance(message, str)
        return message


def read_reply(stream: socket.socket, buffered: bytearray) -> Answer:
    """Read one reply from a socket; what follows it stays in `buffered`.

    Raises:
        ConnectionError: The connection ended first.
        AssertionError: What came is not a well-formed reply.
    """
    while (stop := buffered.find(b"\r\n\r\n")) < 0:
        _receive(stream, buffered)
    status_line, *lines = bytes(buffered[:stop]).decode("latin-1").split("\r\n")
    del buffered[: stop + 4]
    version, status, _ = status_line.split(" ", 2)
    assert version == "HTTP/1.1"
    headers = dict(line.split(": ", 1) for line in lines)
    if status == "100":
        return Answer(100, headers, b"")
    length = int(headers["Content-Length"])
    while len(buffered) < length:
        _receive(stream, buffered)
    body = bytes(buffered[:length])
    del buffered[:length]
    return Answer(int(status), headers, body)


def _receive(stream: socket.socket, buffered: bytearray) -> None:
    data = stream.recv(1 << 20)
    if not data:
        raise ConnectionError(f"the connection ended after {bytes(buffered[:200])!r}")
    buffered += data


def request_bytes(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    """Return a request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", "Host: edge", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body
