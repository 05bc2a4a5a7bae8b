"""The Python client against real daemons, and against servers that misbehave."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.client import AnswerError, Client
from edgekit.errors import NetworkError, UsageError
from tests.daemon.serving import PLAIN, Running, adder, affine, echo, slow
from tests.daemon.test_extensions import Shelf

pytestmark = pytest.mark.device

FOUR = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def start(*models: Any, **settings: Any) -> Running:
        made.append(Running(models, PLAIN, tmp_path, linger_s=0.0, **settings))
        return made[-1].start()

    yield start
    for one in made:
        one.stop()


def urls(running: Running) -> list[str]:
    return ["http://{}:{}".format(*running.address), f"unix:{running.listening.socket}"]


@pytest.mark.parametrize("binary", [True, False])
def test_arrays_go_in_and_out(serving: Callable[..., Running], binary: bool) -> None:
    running = serving(affine(), adder(), echo("bytes"), affine(version=2))
    for url in urls(running):
        with Client(url, binary=binary) as client:
            several = client.predict("affine", FOUR)
            assert isinstance(several, dict)
            assert several["y"].tolist() == [[3, 5, 7, 9]]
            assert several["y"].dtype == np.float32
            assert several["total"].tolist() == [10]
            several["y"][:] = 0  # they are the caller's
            feed: dict[str, Any] = {
                "a": np.array([[0.5, 1.5]], np.float32),
                "b": np.array([[2**40, -4]], np.int64),
            }
            assert client.predict("adder", feed)["total"].tolist() == [[0.5 + 2**40, -2.5]]
            words = client.predict("echo-bytes", np.array([["a", "ü"]]))
            assert isinstance(words, np.ndarray)
            assert words.tolist() == [[b"a", "ü".encode()]]
            odd = np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)
            got = client.predict("affine", {"x": odd}, version=1)
            np.testing.assert_array_equal(got["y"], [[np.nan, np.inf, -np.inf, 3]])


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint64", "float16", "float32", "float64"])
def test_every_dtype_in_any_layout(serving: Callable[..., Running], dtype: str) -> None:
    running = serving(echo(dtype))
    array = (np.arange(6000).reshape(100, 60) % 2).astype(dtype)
    with Client(urls(running)[0]) as client:
        for given in (array, array.T, array[::2], array.astype(array.dtype.newbyteorder(">"))):
            got = client.predict(f"echo-{dtype}", given)
            assert isinstance(got, np.ndarray)
            np.testing.assert_array_equal(got, given)
            assert got.dtype == array.dtype


def test_half_precision_needs_binary(serving: Callable[..., Running]) -> None:
    running = serving(echo("float16"))
    with Client(urls(running)[0], binary=False) as client, pytest.raises(UsageError, match="binary=True"):
        client.predict("echo-float16", np.ones((1, 1), np.float16))


def test_large_tensors(serving: Callable[..., Running]) -> None:
    array = np.random.default_rng(0).random((1, 2_000_000), np.float32)
    for url in urls(serving(echo("float32"))):
        with Client(url) as client:
            np.testing.assert_array_equal(client.predict("echo-float32", array), array)


def test_state(serving: Callable[..., Running]) -> None:
    shelf = Shelf()
    shelf.put(affine())
    running = serving(*shelf.offers, shelf=shelf, repository_control=True)
    shelf.put(adder())
    with Client(urls(running)[1]) as client:
        assert client.is_live()
        assert client.is_ready()
        assert client.is_ready("affine", version=1)
        assert not client.is_ready("adder")
        assert client.server()["name"] == "edgekit"
        client.load("adder")
        client.wait_ready(10, "adder")
        assert client.metadata("adder")["inputs"][0]["name"] == "a"
        client.unload("adder")
        assert [(one["name"], one["state"]) for one in client.index()] == [
            ("adder", "UNAVAILABLE"),
            ("affine", "READY"),
        ]
        client.predict("affine", FOUR)
        assert client.statistics("affine")[0]["inference_count"] == 1
        assert len(client.statistics()) == 1
        with pytest.raises(NetworkError, match=r"absent .* was not ready within"):
            client.wait_ready(0.1, "absent")


def test_what_is_refused(serving: Callable[..., Running]) -> None:
    running = serving(affine(), adder())
    with Client(urls(running)[0]) as client:
        for ask, status in (
            (lambda: client.predict("absent", FOUR), 404),
            (lambda: client.predict("affine", FOUR, version=9), 404),
            (lambda: client.predict("affine", {"z": FOUR}), 400),
            (lambda: client.predict("affine", FOUR[:, :3]), 400),
            (lambda: client.unload("affine"), 403),
        ):
            with pytest.raises(AnswerError) as refused:
                ask()
            assert refused.value.status == status
        with pytest.raises(UsageError, match="several inputs: got an array, expected arrays by name: a, b"):
            client.predict("adder", FOUR)
        with pytest.raises(UsageError, match="is not an array: got list"):
            client.predict("affine", [[1.0]])  # type: ignore[call-overload]
        with pytest.raises(UsageError, match="a dtype that the protocol lacks: got complex64"):
            client.predict("affine", FOUR.astype(np.complex64))


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8080", "https://h", "ftp://h", "http://", "http://h/path", "unix:", "unix://h/p", "http://h:x"]
)  # fmt: skip
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError, match="not a server's address"):
        Client(url)


def test_nobody_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", f"unix:{tmp_path}/absent"):
        with Client(url, timeout_s=5, retries=1) as client:
            assert not client.is_ready()
            with pytest.raises(NetworkError, match="does not answer"):
                client.server()


def test_a_restarted_server_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with Client(f"unix:{path}", retries=0) as client:
        for _ in range(2):
            with Running([affine()], PLAIN, tmp_path, socket=path, linger_s=0.0):
                client.predict("affine", FOUR)  # the connection that was kept has been closed meanwhile


def test_a_server_that_starts_late_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    running = Running([affine()], PLAIN, tmp_path, socket=path, linger_s=0.0)
    starter = threading.Timer(0.3, running.start)
    starter.start()
    with Client(f"unix:{path}", retries=20, timeout_s=20) as client:
        assert client.server()["name"] == "edgekit"
    starter.join()
    running.stop()


def test_threads_share_a_client(serving: Callable[..., Running]) -> None:
    running = serving(echo("float32"))
    wrong: list[int] = []
    with Client(urls(running)[1]) as client:

        def ask(index: int) -> None:
            for _ in range(20):
                got = client.predict("echo-float32", np.full((1, 5000), index, np.float32))
                if not (got == index).all():  # type: ignore[union-attr]
                    wrong.append(index)

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_busy_server_is_asked_again(serving: Callable[..., Running]) -> None:
    running = serving(slow(0.3), queue_limit=1)
    one = np.ones((1, 1), np.float32)
    with Client(urls(running)[0], retries=0) as client, Client(urls(running)[0], retries=5) as patient:
        busy = threading.Thread(target=client.predict, args=("slow", one))
        busy.start()
        lane = running.daemon.catalog.find("slow")
        while not lane.waiting:
            time.sleep(0.005)
        with pytest.raises(AnswerError) as refused:
            client.predict("slow", {"x": one})
        assert refused.value.status == 503
        assert patient.predict("slow", {"x": one})["y"].tolist() == [[1]]
        busy.join()


def test_a_slow_model_is_given_up_in_time(serving: Callable[..., Running]) -> None:
    with Client(urls(serving(slow(1.0)))[0], timeout_s=0.3) as client:
        began = time.monotonic()
        with pytest.raises(NetworkError, match="does not answer: got timed out"):
            client.predict("slow", {"x": np.ones((1, 1), np.float32)})
        assert time.monotonic() - began < 5


@contextmanager
def answering(*pieces: bytes, pause_s: float = 0.0) -> Iterator[str]:
    """Run a server that answers the first request of each connection with these bytes, whatever it was."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)
                    for piece in pieces:
                        try:
                            connection.sendall(piece)
                        except OSError:
                            break
                        time.sleep(pause_s)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def reply(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


OUTPUT = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}'


@pytest.mark.parametrize(
    "bytes_",
    [
        b"",
        b"nonsense\r\n\r\n",
        reply(b"{"),
        reply(b"[]"),
        reply(b'{"outputs": 1}'),
        reply(OUTPUT),
        reply(OUTPUT, "Inference-Header-Content-Length: 9999"),
        reply(OUTPUT, "Inference-Header-Content-Length: x"),
        reply(OUTPUT + bytes(4), f"Inference-Header-Content-Length: {len(OUTPUT)}"),
        reply(OUTPUT.replace(b"8", b"-8") + bytes(8), f"Inference-Header-Content-Length: {len(OUTPUT) + 1}"),
        reply(b'{"outputs":[{"name":"y","datatype":"FP31","shape":[1],"data":[1]}]}'),
        reply(b'{"outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[1]}]}'),
        reply(b"abc")[:-1],
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
    ],
)
def test_a_server_that_talks_nonsense_is_a_network_error(bytes_: bytes) -> None:
    with answering(bytes_) as url, Client(url, retries=0, timeout_s=5) as client, pytest.raises(NetworkError):
        client.predict("m", {"x": FOUR})


def test_chunked_answers_are_read() -> None:
    body = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[1,2]}]}'
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
        len(body),
        body,
    )
    with answering(chunked) as url, Client(url) as client:
        assert client.predict("m", {"x": FOUR})["y"].tolist() == [1, 2]


def test_an_error_without_json_is_shown_as_it_is() -> None:
    with (
        answering(reply(b"no way", status="418 Teapot")) as url,
        Client(url) as client,
        pytest.raises(AnswerError, match="answered 418: no way"),
    ):
        client.server()


def test_a_server_that_answers_in_drops_does_not_outlast_the_deadline() -> None:
    pieces = [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", *[b"x"] * 1000]
    with answering(*pieces, pause_s=0.05) as url, Client(url, timeout_s=0.5) as client:
        began = time.monotonic()
        with pytest.raises(NetworkError):
            client.server()
        assert time.monotonic() - began < 10
