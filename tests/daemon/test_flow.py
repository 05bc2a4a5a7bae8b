"""Readiness, queues, slow models and the end, on real sockets."""

from __future__ import annotations

import gc
import json
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest

from edgekit.daemon.http1 import Head
from edgekit.daemon.http_call import HttpCall
from edgekit.daemon.lane import INLINE_S, Lane, ServiceTime
from edgekit.daemon.library import Offer
from edgekit.daemon.signature import Inference
from edgekit.errors import RefusedError
from edgekit.model import Model
from tests.daemon.serving import Answer, Running, affine, model_of, read_reply, request_bytes, slow

pytestmark = pytest.mark.device

Serving = Callable[..., Running]
ONE = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}
FOUR = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


def together(count: int, ask: Callable[[], Answer]) -> list[Answer]:
    """Ask from several threads at once."""
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(ask())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return answers


class Gate:
    """A model that answers when it is told to."""

    def __init__(self, name: str = "gated") -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        specs = slow(0)

        def wait(feed: dict[str, object]) -> dict[str, object]:
            self.entered.set()
            assert self.open.wait(20)
            return {"y": feed["x"]}

        self.model = model_of(name, specs.inputs, specs.outputs, wait)  # type: ignore[arg-type]


def test_live_at_once_and_ready_only_with_every_model(serving: Serving) -> None:
    go = threading.Event()

    def load() -> Model:
        assert go.wait(20)
        return affine()

    running = serving(Offer("slow", lambda: slow(0)), Offer("affine", load), wait_ready=False, linger_s=0.0)
    assert running.ask("GET", "/v2/health/live").status == 200
    ready = running.ask("GET", "/v2/health/ready")
    assert (ready.status, ready.json) == (503, {"ready": False})
    model = running.ask("GET", "/v2/models/affine/ready")
    assert (model.status, model.json) == (503, {"name": "affine", "ready": False})
    infer = running.infer("affine", FOUR)
    assert (infer.status, infer.headers["Retry-After"]) == (503, "1")
    assert "edgekit_ready 0" in running.ask("GET", "/metrics").body.decode()
    go.set()
    deadline = time.monotonic() + 10
    while running.ask("GET", "/v2/health/ready").status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert running.infer("affine", FOUR).status == 200


def test_told_to_end_while_a_model_loads_it_ends_without_a_word(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()

    def load() -> Model:
        assert go.wait(20)
        return affine()

    running = serving(Offer("affine", load), wait_ready=False, linger_s=0.0)
    running.stop()
    gc.collect()  # asyncio complains when it finds a task that nobody ended
    go.set()
    assert running.error is None
    assert caplog.text == ""


def test_a_model_that_fails_its_self_test_ends_the_daemon(serving: Serving) -> None:
    def load() -> Model:
        raise RefusedError("it failed its golden self-test")

    running = serving(Offer("bad", load), wait_ready=False)
    running.stop()
    assert isinstance(running.error, RefusedError)
    assert running.listening.socket is not None
    assert not running.listening.socket.exists()


def test_health_and_other_models_answer_during_a_slow_call(serving: Serving) -> None:
    gate = Gate()
    running = serving(gate.model, affine())
    first = threading.Thread(target=running.infer, args=("gated", ONE))
    second = threading.Thread(target=running.infer, args=("gated", ONE))
    first.start()
    second.start()
    assert gate.entered.wait(10)
    for _ in range(20):  # they could not, were the loop itself in the call
        assert running.ask("GET", "/v2/health/ready").status == 200
        assert running.infer("affine", FOUR).status == 200
    assert 'edgekit_queue_depth{model="gated",version="1"} 2' in running.ask("GET", "/metrics").body.decode()
    gate.open.set()
    first.join(10)
    second.join(10)
    assert 'edgekit_queue_depth{model="gated",version="1"} 0' in running.ask("GET", "/metrics").body.decode()


def test_a_client_that_pipelines_does_not_keep_the_others_out(serving: Serving) -> None:
    specs = slow(0)
    calls: list[int] = []
    begun = threading.Event()

    def work(feed: dict[str, object]) -> dict[str, object]:
        calls.append(1)
        if len(calls) > 2:
            begun.set()
        time.sleep(INLINE_S / 2)
        return {"y": feed["x"]}

    running = serving(model_of("brief", specs.inputs, specs.outputs, work))  # type: ignore[arg-type]
    assert running.infer("brief", ONE).status == 200  # now it is known to be quick enough for the loop
    requests = request_bytes("/v2/models/brief/infer", json.dumps(ONE).encode()) * 120
    with running.connect() as greedy:
        greedy.sendall(requests)
        assert begun.wait(10)
        assert running.ask("GET", "/v2/health/live").status == 200
        assert len(calls) < 100
        buffered = bytearray()
        assert [read_reply(greedy, buffered).status for _ in range(120)] == [200] * 120


def test_pipelined_requests_of_a_client_that_has_closed_its_sending_half(serving: Serving) -> None:
    running = serving(affine())
    with running.connect() as stream:
        stream.sendall(request_bytes("/v2/models/affine/infer", json.dumps(FOUR).encode()) * 50)
        stream.shutdown(socket.SHUT_WR)
        buffered = bytearray()
        assert [read_reply(stream, buffered).status for _ in range(50)] == [200] * 50
        assert stream.recv(1) == b""


def test_told_to_end_while_a_model_loads(serving: Serving) -> None:
    loading, go = threading.Event(), threading.Event()

    def load() -> Model:
        loading.set()
        assert go.wait(20)
        return affine()

    running = serving(Offer("affine", load), wait_ready=False)
    assert loading.wait(10)
    running.stop()
    assert running.error is None
    go.set()


def test_a_full_queue_is_refused_while_it_is_full(serving: Serving) -> None:
    gate = Gate()
    running = serving(gate.model, queue_limit=3)
    accepted: list[Answer] = []
    clients = [
        threading.Thread(target=lambda: accepted.append(running.infer("gated", ONE))) for _ in range(3)
    ]
    for client in clients:
        client.start()
    deadline = time.monotonic() + 10
    while running.daemon.catalog.lanes["gated"][1].waiting < 3:
        assert time.monotonic() < deadline
    refused = together(5, lambda: running.infer("gated", ONE))
    assert [answer.status for answer in refused] == [503] * 5
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert all("queue of model 'gated' is full" in answer.error for answer in refused)
    gate.open.set()
    for client in clients:
        client.join(10)
    assert [answer.status for answer in accepted] == [200] * 3
    assert running.infer("gated", ONE).status == 200


def test_a_call_whose_client_has_gone_is_dropped_from_the_queue(serving: Serving) -> None:
    gate = Gate()
    running = serving(gate.model)
    lane = running.daemon.catalog.lanes["gated"][1]
    first = threading.Thread(target=running.infer, args=("gated", ONE))
    first.start()
    assert gate.entered.wait(10)
    gone = running.connect()
    body = json.dumps(ONE).encode()
    gone.sendall(
        request_bytes("/v2/models/gated/infer", body) + request_bytes("/v2/models/gated/infer", body)
    )
    while lane.waiting < 2:
        time.sleep(0.001)
    # what the client never reads makes the closing a reset, which the daemon sees at once
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.close()
    time.sleep(0.1)
    gate.open.set()
    first.join(10)
    deadline = time.monotonic() + 10
    while lane.waiting:
        assert time.monotonic() < deadline
    assert lane.answered.get(499) == 1
    assert lane.model.monitor is not None
    assert lane.model.monitor.totals().calls == 1


def test_where_a_call_runs(serving: Serving) -> None:
    """The first call of a model is measured in the worker; a quick one then runs in the loop, a slow one never."""
    threads: dict[str, list[str]] = {"affine": [], "slow": []}

    def watched(model: Model) -> Model:
        infer = model.infer

        def note(feed: object) -> object:
            threads[model.name].append(threading.current_thread().name)
            return infer(feed)  # type: ignore[arg-type]

        model.infer = note  # type: ignore[method-assign, assignment]
        return model

    running = serving(watched(affine()), watched(slow(2 * INLINE_S)))
    for _ in range(3):
        assert running.infer("affine", FOUR).status == 200
        assert running.infer("slow", ONE).status == 200
    assert threads["affine"][0] == "infer-affine"
    assert set(threads["affine"][1:]) == {running.thread_name}
    assert set(threads["slow"]) == {"infer-slow"}


def test_the_expected_service_time() -> None:
    service = ServiceTime()
    assert service.expect(1) == float("inf")
    service.note(1, 0.001)
    assert service.expect(1) == 0.001
    assert service.expect(64) == pytest.approx(0.064)  # nothing is known of a batch: it may take as much more
    service.note(64, 0.010)
    assert service.expect(100) == 0.010
    assert service.expect(8) == pytest.approx(0.008)
    service.note(1, 10.0)
    assert service.expect(1) < INLINE_S + 0.001  # one call that was held up does not move it far
    for _ in range(20):
        service.note(1, 0.100)
    assert service.expect(1) > 0.05


def test_draining_answers_everything_that_was_accepted(serving: Serving) -> None:
    """Clients on kept-alive connections, as fast as they can, while the daemon is told to end."""
    running = serving(affine(), slow(0.02), drain_s=10.0)
    body = {"affine": json.dumps(FOUR).encode(), "slow": json.dumps(ONE).encode()}
    failures: list[str] = []
    counts = {"ok": 0, "closed": 0}
    started = threading.Barrier(7)

    def client(model: str, unix: bool) -> None:
        stream = running.connect(unix=unix)
        buffered = bytearray()
        started.wait()
        while True:
            try:
                stream.sendall(request_bytes(f"/v2/models/{model}/infer", body[model]))
                answer = read_reply(stream, buffered)
            except (OSError, AssertionError) as error:
                failures.append(repr(error))
                return
            if answer.status != 200:
                failures.append(str(answer))
            counts["ok"] += 1
            if answer.headers.get("Connection") == "close":
                counts["closed"] += 1
                stream.close()
                return

    clients = [
        threading.Thread(target=client, args=(model, unix))
        for model in ("affine", "slow")
        for unix in (False, True, False)
    ]
    for thread in clients:
        thread.start()
    started.wait()
    time.sleep(0.3)
    running.stop()
    for thread in clients:
        thread.join(10)
    assert failures == []
    assert counts["closed"] == 6
    assert counts["ok"] > 50


def test_not_ready_at_once_and_a_call_under_way_is_finished(serving: Serving) -> None:
    gate = Gate()
    running = serving(gate.model, linger_s=5.0)
    accepted: list[Answer] = []
    client = threading.Thread(target=lambda: accepted.append(running.infer("gated", ONE)))
    client.start()
    assert gate.entered.wait(10)
    running.loop.call_soon_threadsafe(running.daemon.stop)
    deadline = time.monotonic() + 10
    while not running.daemon.catalog.draining:
        assert time.monotonic() < deadline
    ready = running.ask("GET", "/v2/health/ready")
    assert (ready.status, ready.json) == (503, {"ready": False})
    assert running.ask("GET", "/v2/health/live").status == 200
    gate.open.set()
    client.join(10)
    assert [answer.status for answer in accepted] == [200]
    running.stop()


def test_the_drain_has_a_deadline(serving: Serving) -> None:
    gate = Gate()
    running = serving(gate.model, drain_s=0.3)
    stream = running.connect()
    stream.sendall(request_bytes("/v2/models/gated/infer", json.dumps(ONE).encode()))
    assert gate.entered.wait(10)
    running.stop()  # fails when the daemon still runs after 20 s
    with pytest.raises((ConnectionError, OSError)):
        read_reply(stream, bytearray())
    stream.close()
    gate.open.set()


def test_the_model_is_closed_at_the_end(serving: Serving) -> None:
    model = affine()
    running = serving(model)
    running.stop()
    assert model.session.closed  # type: ignore[attr-defined]


def test_a_lane_answers_a_bug_with_500_and_lives() -> None:
    lane = Lane(affine(), queue_limit=4, body_limit=1000)
    answers: list[int] = []

    class Broken(HttpCall):
        def _decode(self) -> Inference:
            raise ZeroDivisionError

    done = threading.Event()
    for _ in range(2):
        call = Broken(lane, Head("POST", "/"), memoryview(b""))
        lane.submit(call, lambda reply: (answers.append(reply.status), done.set()))  # type: ignore[arg-type, func-returns-value]
        assert done.wait(10)
        done.clear()
    assert answers == [500, 500]
    lane.stop()
