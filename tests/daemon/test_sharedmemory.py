"""Tensors in system shared memory, with real files in /dev/shm."""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.daemon.http1 import HttpError
from edgekit.daemon.inbound import Limits
from edgekit.daemon.sharedmemory import Regions, Slice
from tests.daemon.serving import Answer, Running, affine, echo

pytestmark = pytest.mark.device

Serving = Callable[..., Running]
SHM = Path("/dev/shm")
FOUR = np.array([1, 2, 3, 4], np.float32)


class Segment:
    """A file in /dev/shm, as a client makes it."""

    def __init__(self, data: bytes) -> None:
        self.name = f"edgekit-test-{secrets.token_hex(6)}"
        self.path = SHM / self.name
        self.path.write_bytes(data)

    @property
    def key(self) -> str:
        return f"/{self.name}"


@pytest.fixture
def segment() -> Iterator[Callable[[bytes], Segment]]:
    made: list[Segment] = []

    def make(data: bytes) -> Segment:
        made.append(Segment(data))
        return made[-1]

    yield make
    for one in made:
        one.path.unlink(missing_ok=True)


def register(running: Running, name: str, key: str, size: int, offset: int = 0) -> Answer:
    import json

    body = json.dumps({"key": key, "offset": offset, "byte_size": size}).encode()
    return running.ask("POST", f"/v2/systemsharedmemory/region/{name}/register", body)


def place(region: str, size: int, offset: int = 0) -> dict[str, Any]:
    return {
        "shared_memory_region": region,
        "shared_memory_byte_size": size,
        "shared_memory_offset": offset,
    }


def ask(where: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": where}], **more}


def test_tensors_go_in_and_out(serving: Serving, segment: Callable[[bytes], Segment]) -> None:
    running = serving(affine(), shared_memory=True)
    shared = segment(bytes(8) + FOUR.tobytes() + bytes(64))
    assert "system_shared_memory" in running.ask("GET", "/v2").json["extensions"]
    assert register(running, "r", shared.key, 80, offset=8).status == 200
    outputs = [{"name": "y", "parameters": place("r", 20, 32)}, {"name": "total"}]
    for _ in range(3):  # in the worker, then in the loop
        answer = running.infer("affine", ask(place("r", 16), outputs=outputs))
        assert answer.json["outputs"] == [
            {"name": "y", "datatype": "FP32", "shape": [1, 4]},
            {"name": "total", "datatype": "FP32", "shape": [1], "data": [10.0]},
        ]
        written = np.frombuffer(shared.path.read_bytes(), np.float32, 4, 40)
        assert written.tolist() == [3, 5, 7, 9]


def test_strings_go_in_and_out(serving: Serving, segment: Callable[[bytes], Segment]) -> None:
    running = serving(echo("bytes"), shared_memory=True)
    packed = struct.pack("<I", 2) + b"ab" + struct.pack("<I", 0)
    shared = segment(packed + bytes(100))
    register(running, "r", shared.key, 100)
    message = {
        "inputs": [
            {"name": "x", "shape": [1, 2], "datatype": "BYTES", "parameters": place("r", len(packed))}
        ],
        "outputs": [{"name": "y", "parameters": place("r", 50, 50)}],
    }
    assert running.infer("echo-bytes", message).status == 200
    assert shared.path.read_bytes()[50 : 50 + len(packed)] == packed


def test_status_and_unregister(serving: Serving, segment: Callable[[bytes], Segment]) -> None:
    running = serving(affine(), shared_memory=True)
    shared = segment(bytes(100))
    assert running.ask("GET", "/v2/systemsharedmemory/status").json == []
    assert running.ask("GET", "/v2/systemsharedmemory/region/a/status").status == 404
    assert register(running, "a", shared.key, 100).status == 200
    assert register(running, "b", shared.key, 50, 50).status == 200
    assert register(running, "a", shared.key, 100).status == 409
    a = {"name": "a", "key": shared.key, "offset": 0, "byte_size": 100}
    b = {"name": "b", "key": shared.key, "offset": 50, "byte_size": 50}
    assert running.ask("GET", "/v2/systemsharedmemory/status").json == [a, b]
    assert running.ask("GET", "/v2/systemsharedmemory/region/b/status").json == [b]
    assert running.ask("POST", "/v2/systemsharedmemory/region/a/unregister").status == 200
    assert running.ask("POST", "/v2/systemsharedmemory/region/a/unregister").status == 200
    assert running.ask("GET", "/v2/systemsharedmemory/status").json == [b]
    assert running.ask("POST", "/v2/systemsharedmemory/unregister").status == 200
    assert running.ask("GET", "/v2/systemsharedmemory/status").json == []
    assert running.ask("GET", "/v2/cudasharedmemory/status").json == []
    assert running.ask("POST", "/v2/cudasharedmemory/unregister").status == 200
    assert running.ask("POST", "/v2/cudasharedmemory/region/g/register", b"{}").status == 501


@pytest.mark.parametrize(
    "key", ["", "/", "..", "/../etc/passwd", "/a/b", "a\x00b", "/.hidden", "/" + "x" * 300, "/absent-key"]
)
def test_keys_outside_of_shared_memory_are_refused(serving: Serving, key: str) -> None:
    assert register(serving(affine(), shared_memory=True), "r", key, 10).status == 400


def test_links_folders_and_pipes_are_refused(segment: Callable[[bytes], Segment]) -> None:
    shared = segment(b"")
    for make in (lambda p: p.symlink_to("/etc/passwd"), lambda p: p.mkdir(), os.mkfifo):
        shared.path.unlink()
        make(shared.path)
        with pytest.raises(HttpError) as refused:
            Regions(1000).register("r", shared.key, 0, 1)
        assert refused.value.status == 400
        if shared.path.is_dir() and not shared.path.is_symlink():
            shared.path.rmdir()
            shared.path.write_bytes(b"")


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (-1, 10), (0, 101), (60, 41), (2**61, 2**61)])
def test_sizes_that_the_memory_has_not_are_refused(
    serving: Serving, segment: Callable[[bytes], Segment], offset: int, size: int
) -> None:
    running = serving(affine(), shared_memory=True)
    assert register(running, "r", segment(bytes(100)).key, size, offset).status == 400


@pytest.mark.parametrize(
    ("where", "status", "says"),
    [
        (place("q", 16), 404, "no region 'q'"),
        (place("r", 16, 90), 400, "ends before the tensor"),
        (place("r", 8), 400, "got 8, expected 16"),
        (place("r", 32), 400, "got 32, expected 16"),
        ({"shared_memory_region": "r"}, 400, "needs shared_memory_byte_size"),
        ({**place("r", 16), "binary_data_size": 16}, 400, "both"),
        (place("r", 16, -1), 400, "Expected `int` >= 0"),
        (place("r", 2**61, 2**61), 400, "ends before"),
    ],
)
def test_inputs_that_are_not_there(
    serving: Serving, segment: Callable[[bytes], Segment], where: dict[str, Any], status: int, says: str
) -> None:
    running = serving(affine(), shared_memory=True)
    register(running, "r", segment(bytes(100)).key, 100)
    answer = running.infer("affine", ask(where))
    assert (answer.status, says in answer.error) == (status, True), answer
    assert running.infer("affine", ask(place("r", 16))).status == 200


def test_an_output_that_does_not_fit_is_refused(
    serving: Serving, segment: Callable[[bytes], Segment]
) -> None:
    running = serving(affine(), shared_memory=True)
    shared = segment(bytes(100))
    register(running, "r", shared.key, 100)
    outputs = [{"name": "y", "parameters": place("r", 15, 50)}]
    answer = running.infer("affine", ask(place("r", 16), outputs=outputs))
    assert answer.status == 400
    assert "does not fit into region 'r'" in answer.error
    assert shared.path.read_bytes() == bytes(100)


def test_memory_that_a_client_cuts_short_harms_nobody(
    serving: Serving, segment: Callable[[bytes], Segment]
) -> None:
    """A mapping would be the end of the daemon here (SIGBUS)."""
    running = serving(affine(), shared_memory=True)
    shared = segment(bytes(100_000))
    register(running, "r", shared.key, 100_000)
    os.truncate(shared.path, 8)
    answer = running.infer("affine", ask(place("r", 16, 50_000)))
    assert (answer.status, "shorter" in answer.error) == (400, True)
    os.truncate(shared.path, 100_000)
    assert running.infer("affine", ask(place("r", 16, 50_000))).status == 200


def test_a_tensor_in_shared_memory_has_the_same_limit_as_a_body(
    serving: Serving, segment: Callable[[bytes], Segment]
) -> None:
    running = serving(echo("float32"), shared_memory=True, limits=Limits(body_bytes=4000))
    register(running, "r", segment(bytes(8000)).key, 8000)
    x = {"name": "x", "shape": [1, 1001], "datatype": "FP32", "parameters": place("r", 4004)}
    assert running.infer("echo-float32", {"inputs": [x]}).status == 413


def descriptors(of: Segment) -> int:
    """Count this process's descriptors of a segment."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return sum(os.path.lexists(link) and os.readlink(link) == str(of.path) for link in links)  # noqa: PTH115


def test_regions_are_few_and_their_files_are_closed(segment: Callable[[bytes], Segment]) -> None:
    shared = segment(bytes(10))
    regions = Regions(1000)
    for index in range(64):
        regions.register(f"r{index}", shared.key, 0, 10)
    with pytest.raises(HttpError):
        regions.register("one more", shared.key, 0, 10)
    assert descriptors(shared) == 64
    regions.unregister("")
    assert descriptors(shared) == 0


def test_what_is_read_is_a_copy(segment: Callable[[bytes], Segment]) -> None:
    shared = segment(b"abcdef")
    regions = Regions(1000)
    regions.register("r", shared.name, 1, 5)
    data = regions.read(Slice("r", 1, 3))
    shared.path.write_bytes(b"xxxxxx")
    assert data == b"cde"


def test_without_the_option_it_is_off(serving: Serving, segment: Callable[[bytes], Segment]) -> None:
    running = serving(affine())
    assert "system_shared_memory" not in running.ask("GET", "/v2").json["extensions"]
    assert register(running, "r", segment(bytes(10)).key, 10).status == 501
    answer = running.infer("affine", ask(place("r", 16)))
    assert (answer.status, "shared memory is not supported" in answer.error) == (400, True)
