"""The protocol's extensions on real sockets: statistics, configuration, repository, compressed replies."""

from __future__ import annotations

import gzip
import json
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from edgekit.daemon.inbound import Limits
from edgekit.daemon.library import Offer
from edgekit.errors import RefusedError
from edgekit.model import Model
from tests.daemon.serving import Running, adder, affine, echo, model_of, request_bytes, slow
from tests.daemon.test_protocol import INFER, JSON_BYTES, JSON_REQUEST, exchange

pytestmark = pytest.mark.device

Serving = Callable[..., Running]


def stats(running: Running, path: str = "/v2/models/affine/stats") -> Any:
    answer = running.ask("GET", path)
    assert answer.status == 200
    return answer.json["model_stats"]


def test_statistics_count_requests_and_batch_elements(serving: Serving) -> None:
    running = serving(affine(), slow(0.01))
    (before,) = stats(running)
    assert (before["inference_count"], before["execution_count"], before["last_inference"]) == (0, 0, 0)
    wide = {"inputs": [{"name": "x", "shape": [3, 4], "datatype": "FP32", "data": list(range(12))}]}
    for message in (JSON_REQUEST, JSON_REQUEST, wide):
        assert running.infer("affine", message).status == 200
    assert running.infer("affine", {"inputs": []}).status == 400
    (after,) = stats(running)
    assert (after["name"], after["version"]) == ("affine", "1")
    assert (after["inference_count"], after["execution_count"]) == (5, 3)
    assert abs(after["last_inference"] / 1000 - time.time()) < 60
    times = after["inference_stats"]
    assert {times[part]["count"] for part in ("success", "queue", "compute_input", "compute_infer", "compute_output")} == {3}  # fmt: skip
    assert [times[part] for part in ("fail", "cache_hit", "cache_miss")] == [{"count": 0, "ns": 0}] * 3
    parts = sum(times[part]["ns"] for part in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert times["success"]["ns"] == parts > 0
    assert [(one["batch_size"], one["compute_infer"]["count"]) for one in after["batch_stats"]] == [(1, 2), (3, 1)]  # fmt: skip
    assert [one["name"] for one in stats(running, "/v2/models/stats")] == ["affine", "slow"]


def test_statistics_know_where_the_time_goes(serving: Serving) -> None:
    running = serving(slow(0.02))
    one = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}).encode()
    threads = [threading.Thread(target=running.infer, args=("slow", one)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (seen,) = stats(running, "/v2/models/slow/stats")
    times = seen["inference_stats"]
    assert times["compute_infer"]["ns"] >= 3 * 20e6
    assert times["queue"]["ns"] >= 20e6  # the third waits for two, the second for one


def test_statistics_count_what_the_model_refuses_or_fails(serving: Serving) -> None:
    def fail(_: object) -> dict[str, Any]:
        raise RuntimeError("gone")

    running = serving(model_of("broken", affine().inputs, affine().outputs, fail))
    assert running.infer("broken", JSON_REQUEST).status == 500
    (seen,) = stats(running, "/v2/models/broken/stats")
    assert seen["inference_stats"]["fail"]["count"] == 1
    assert seen["execution_count"] == 0


def test_versions_have_statistics_of_their_own(serving: Serving) -> None:
    running = serving(affine(), affine(version=2))
    running.infer("affine/versions/1", JSON_REQUEST)
    assert [(one["version"], one["inference_count"]) for one in stats(running)] == [("1", 1), ("2", 0)]
    (only,) = stats(running, "/v2/models/affine/versions/2/stats")
    assert only["version"] == "2"


def test_config_is_what_perf_analyzer_reads(serving: Serving) -> None:
    running = serving(affine(), echo("bytes", (2, -1)))
    config = running.ask("GET", "/v2/models/affine/versions/1/config").json
    assert config["max_batch_size"] > 0
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4], "format": "FORMAT_NONE"}]
    assert config["output"] == [
        {"name": "y", "data_type": "TYPE_FP32", "dims": [4]},
        {"name": "total", "data_type": "TYPE_FP32", "dims": []},
    ]
    assert config["model_transaction_policy"] == {"decoupled": False}
    fixed = running.ask("GET", "/v2/models/echo-bytes/config").json
    assert (fixed["max_batch_size"], fixed["input"][0]["dims"]) == (0, [2, -1])
    assert fixed["input"][0]["data_type"] == "TYPE_STRING"


def test_the_index_lists_what_is_served(serving: Serving) -> None:
    running = serving(affine(), adder())
    expected = [
        {"name": "adder", "version": "1", "state": "READY"},
        {"name": "affine", "version": "1", "state": "READY"},
    ]
    assert running.ask("POST", "/v2/repository/index").json == expected
    assert running.ask("POST", "/v2/repository/any/index", b'{"ready": true}').json == expected


class Shelf:
    """What is installed, and may change."""

    def __init__(self) -> None:
        self.offers: list[Offer] = []
        self.unloaded: list[tuple[str, int]] = []

    def put(self, model: Model, fails: Exception | None = None) -> None:
        def load() -> Model:
            if fails is not None:
                raise fails
            return model

        self.offers = [offer for offer in self.offers if offer.name != model.name]
        unload = lambda gone: self.unloaded.append((gone.name, gone.version))  # noqa: E731
        self.offers.append(Offer(model.name, load, model.version, unload))

    def __call__(self) -> Sequence[Offer]:
        return self.offers


def states(running: Running) -> list[tuple[str, str, str, str]]:
    entries = running.ask("POST", "/v2/repository/index").json
    return [(one["name"], one["version"], one["state"], one.get("reason", "")) for one in entries]


def test_models_are_loaded_swapped_and_unloaded(serving: Serving) -> None:
    shelf = Shelf()
    first = affine()
    shelf.put(first)
    running = serving(*shelf.offers, shelf=shelf, repository_control=True)
    shelf.put(adder())
    assert states(running) == [("adder", "1", "UNAVAILABLE", "not loaded"), ("affine", "1", "READY", "")]
    assert running.ask("POST", "/v2/repository/models/adder/load").status == 200
    assert running.ask("GET", "/v2/models/adder/ready").status == 200
    shelf.put(affine(version=2))
    assert running.ask("POST", "/v2/repository/models/affine/load", b"{}").status == 200
    assert running.infer("affine", JSON_REQUEST).json["model_version"] == "2"
    assert running.infer("affine/versions/1", JSON_REQUEST).status == 404
    assert first.session.closed  # type: ignore[attr-defined]
    assert shelf.unloaded == [("affine", 1)]
    gone = running.ask("POST", "/v2/repository/models/affine/unload", b'{"parameters":{"unload_dependents":true}}')  # fmt: skip
    assert (gone.status, gone.body) == (200, b"")
    assert running.infer("affine", JSON_REQUEST).status == 404
    assert running.ask("GET", "/v2/health/ready").status == 200
    assert states(running) == [("adder", "1", "READY", ""), ("affine", "2", "UNAVAILABLE", "unloaded")]
    assert running.ask("POST", "/v2/repository/models/affine/unload").status == 200  # it is unloaded


def test_a_model_that_does_not_load_leaves_the_old_one_in_its_place(serving: Serving) -> None:
    shelf = Shelf()
    shelf.put(affine())
    running = serving(*shelf.offers, shelf=shelf, repository_control=True)
    shelf.put(affine(version=2), fails=RefusedError("affine 2 failed its golden self-test"))
    answer = running.ask("POST", "/v2/repository/models/affine/load")
    assert answer.status == 400
    assert "failed its golden self-test" in answer.error
    assert running.infer("affine", JSON_REQUEST).json["model_version"] == "1"
    assert states(running) == [
        ("affine", "1", "READY", ""),
        ("affine", "2", "UNAVAILABLE", "affine 2 failed its golden self-test"),
    ]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("nope/load", b"", 404, "no bundle of that name"),
        ("%2e%2e/load", b"", 404, "no bundle of that name"),
        ("%20/load", b"", 400, "has a name"),
        ("affine/load", b'{"parameters": {"config": "{}"}}', 400, "'config' is not supported"),
        ("affine/load", b'{"parameters": 1}', 400, "parse"),
        ("affine/load", b"\xff", 400, "parse"),
    ],
)
def test_what_cannot_be_loaded(serving: Serving, path: str, body: bytes, status: int, says: str) -> None:
    answer = serving(affine(), repository_control=True).ask("POST", f"/v2/repository/models/{path}", body)
    assert answer.status == status
    assert says in answer.error


def test_health_checks_go_on_while_a_model_is_loaded(serving: Serving) -> None:
    shelf, gate = Shelf(), threading.Event()
    shelf.put(affine())
    running = serving(*shelf.offers, shelf=shelf, repository_control=True)
    shelf.offers.append(Offer("late", lambda: gate.wait(20) and adder(), 1))  # type: ignore[arg-type, return-value]
    asking = threading.Thread(target=running.ask, args=("POST", "/v2/repository/models/late/load"))
    asking.start()
    while ("late", "1", "LOADING", "") not in states(running):
        time.sleep(0.01)
    assert running.infer("affine", JSON_REQUEST).status == 200
    gate.set()
    asking.join()


def test_swaps_under_load_fail_no_request(serving: Serving) -> None:
    shelf = Shelf()
    shelf.put(affine())
    running = serving(*shelf.offers, shelf=shelf, repository_control=True)
    seen: set[tuple[int, str]] = set()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = running.infer("affine", JSON_REQUEST)
            seen.add((answer.status, answer.json.get("model_version", answer.body)))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(2, 8):
        shelf.put(affine(version=version))
        assert running.ask("POST", "/v2/repository/models/affine/load").status == 200
    stop.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in seen} == {200}
    assert len(seen) > 2


@pytest.mark.parametrize(
    ("accepts", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("br, gzip ;q=0.2", "gzip"),
        ("gzip;q=0, br", None),
        ("identity", None),
        ("gzip;q=nonsense", None),
    ],
)
def test_a_long_reply_is_compressed_for_those_who_ask(
    serving: Serving, accepts: str, encoding: str | None
) -> None:
    running = serving(echo("float32"))
    array = np.arange(4000, dtype=np.float32)[None]
    for binary in (True, False):
        message = {
            "inputs": [{"name": "x", "shape": [1, 4000], "datatype": "FP32", "data": array[0].tolist()}],
            "parameters": {"binary_data_output": binary},
        }
        for _ in range(3):  # the first in the worker, the others in the loop
            answer = running.infer("echo-float32", message, b"", **{"Accept-Encoding": accepts})
            assert answer.headers.get("Content-Encoding") == encoding
            body = answer.body
            if encoding is not None:
                body = gzip.decompress(body) if encoding == "gzip" else zlib.decompress(body)
            length = int(answer.headers.get("Inference-Header-Content-Length", len(body)))
            (output,) = json.loads(body[:length])["outputs"]
            got = np.frombuffer(body[length:], np.float32) if binary else np.array(output["data"], np.float32)
            np.testing.assert_array_equal(got, array[0])


def test_a_short_reply_is_not_compressed(serving: Serving) -> None:
    answer = serving(affine()).infer("affine", JSON_REQUEST, b"", **{"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in answer.headers
    assert answer.json["outputs"][0]["data"] == [3.0, 5.0, 7.0, 9.0]


def test_a_control_message_has_a_limit_of_its_own(serving: Serving) -> None:
    running = serving(affine(), limits=Limits())
    assert running.ask("POST", "/v2/repository/index", b" " * 2_000_000).status == 413
    packed = gzip.compress(b" " * 2_000_000)
    assert running.ask("POST", "/v2/repository/index", packed, {"Content-Encoding": "gzip"}).status == 413
    packed = gzip.compress(b'{"ready": true}')
    assert running.ask("POST", "/v2/repository/index", packed, {"Content-Encoding": "gzip"}).status == 200
    assert running.ask("POST", "/v2/repository/index", b"{}", {"Content-Encoding": "br"}).status == 415


def test_pipelined_control_and_inference_requests_are_answered_in_order(serving: Serving) -> None:
    shelf = Shelf()
    shelf.put(affine())
    running = serving(*shelf.offers, shelf=shelf, repository_control=True)
    shelf.put(adder())
    sent = (
        request_bytes("/v2/repository/models/adder/load", b"")
        + request_bytes("/v2/models/adder/ready", b"", method="GET")
        + request_bytes(INFER, JSON_BYTES)
        + request_bytes("/v2/repository/models/adder/unload", b"")
        + request_bytes("/v2/models/adder/ready", b"", method="GET")
    )
    assert [answer.status for answer in exchange(running, sent, replies=5)] == [200, 200, 200, 200, 404]


def test_classes_are_the_largest_values_of_each_row(serving: Serving) -> None:
    scores = model_of(
        "scores",
        echo("float32", (-1, 3)).inputs,
        echo("float32", (-1, 3)).outputs,
        lambda feed: {"y": feed["x"]},
        task="classification",
        labels=("cat", "dog", "bird"),
    )
    running = serving(scores, echo("int64", (2, 2)), echo("bytes"))
    x = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [0.25, 0.5, 0.125, 3, 1e9, -2]}
    message = {"inputs": [x], "outputs": [{"name": "y", "parameters": {"classification": 2}}]}
    (output,) = running.infer("scores", message).json["outputs"]
    assert output == {
        "name": "y",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["0.500000:1:dog", "0.250000:0:cat", "1000000000.000000:1:dog", "3.000000:0:cat"],
    }
    message["outputs"] = [{"name": "y", "parameters": {"classification": 9, "binary_data": True}}]
    answer = running.infer("scores", message)
    assert answer.json["outputs"][0]["shape"] == [2, 3]
    assert answer.binary.startswith(b"\x0e\x00\x00\x000.500000:1:dog")
    x = {"name": "x", "shape": [2, 2], "datatype": "INT64", "data": [5, -7, 9, 1]}
    message = {"inputs": [x], "outputs": [{"name": "y", "parameters": {"classification": 2}}]}
    (output,) = running.infer("echo-int64", message).json["outputs"]
    assert (output["shape"], output["data"]) == ([2], ["9:2", "5:0"])
    x = {"name": "x", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}
    assert running.infer("echo-bytes", {**message, "inputs": [x]}).status == 400
