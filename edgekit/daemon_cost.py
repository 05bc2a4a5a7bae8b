"""What the daemon adds to a call: the same inputs through its Unix socket and to a session here, in turns, at one pace.

A call that follows a pause is slower than one that follows another, so both sides begin theirs at the same intervals.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter_ns

import msgspec
import numpy as np

from edgekit.cpu_use import cpu_use, used_between
from edgekit.errors import MachineError
from edgekit.memory_use import resident_mib
from edgekit.runtimes import Session
from edgekit.timing import Latency, order_interval, summarise

__all__ = ["DaemonCost", "Served", "daemon_cost", "infer_request"]

#: Each round asks the daemon, then the session; the cost is the median of the rounds' differences.
_ROUNDS = 12
_LEAST_CALLS, _MOST_CALLS = 5, 2000  # of a side, in a round
_WARM_UP = 30
#: Calls begin this much further apart than the slower side takes, at least.
_ROOM_NS = 300_000
_PATIENCE_S = 60.0

Tell = Callable[[str, float], None]
Feed = Mapping[str, np.ndarray]


class Served(msgspec.Struct, frozen=True):
    """A daemon that serves the plan.

    Attributes:
        socket: Its Unix socket.
        model: The model's name there.
        pid: Its process.
    """

    socket: Path
    model: str
    pid: int


class DaemonCost(msgspec.Struct, frozen=True, tag="daemon"):
    """The same calls both ways.

    Attributes:
        rate_per_s: Calls begun per second, on each side.
        in_process: Latency of the session here.
        through_daemon: From the request's first byte to the reply's last.
        cost_ms: The daemon's: median over the rounds of the difference of their medians, in milliseconds.
        cost_interval_ms: Its two-sided 95 % interval, by the rounds' order.
        ratio: Median through the daemon over median here.
        request_bytes: With its head.
        reply_bytes: With its head.
        daemon_mib: The daemon's resident memory afterwards.
        others_cores: Cores that processes other than these two kept busy.
        busiest: Those that took most, by name, in cores.
    """

    rate_per_s: float
    in_process: Latency
    through_daemon: Latency
    cost_ms: float
    cost_interval_ms: tuple[float, float]
    ratio: float
    request_bytes: int
    reply_bytes: int
    daemon_mib: float
    others_cores: float
    busiest: dict[str, float]


def daemon_cost(session: Session, feed: Feed, served: Served, *, seconds: float, tell: Tell) -> DaemonCost:
    """Measure both sides in turns.

    Args:
        session: The plan's, here.
        feed: Inputs of one call.
        served: The daemon, ready.
        seconds: About how long, both sides together.
        tell: Called with the phase and its share.

    Raises:
        MachineError: The daemon refused the request, or went away.
    """
    request = infer_request(served.model, feed)
    with _Connection(served.socket, request) as connection:
        sides: tuple[Callable[[], object], ...] = (connection.ask, lambda: session.run(feed))
        tell("through the daemon", 0.0)
        for side in sides:
            _paced(side, _WARM_UP, 0)
        slowest_ns = max(float(np.median(_paced(side, _WARM_UP, 0))) for side in sides)
        period_ns = int(max(1.25 * slowest_ns, slowest_ns + _ROOM_NS))
        count = int(seconds * 1e9 / (2 * _ROUNDS * period_ns))
        count = min(_MOST_CALLS, max(_LEAST_CALLS, count))
        times: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        before, start = cpu_use(), perf_counter_ns()
        for rank in range(_ROUNDS):
            for side, seen in zip(sides, times, strict=True):
                seen.append(_paced(side, count, period_ns))
            tell("through the daemon", (rank + 1) / _ROUNDS)
        wall_s = (perf_counter_ns() - start) / 1e9
    used = used_between(before, cpu_use(), wall_s, os.cpu_count() or 1, ours=(served.pid,))
    differences = sorted(
        float(np.median(theirs) - np.median(ours)) / 1e6 for theirs, ours in zip(*times, strict=True)
    )
    ranks = order_interval(_ROUNDS, 50.0)
    assert ranks is not None
    through, here = (summarise(np.concatenate(seen)) for seen in times)
    return DaemonCost(
        rate_per_s=1e9 / period_ns,
        in_process=here,
        through_daemon=through,
        cost_ms=float(np.median(differences)),
        cost_interval_ms=(differences[ranks[0] - 1], differences[ranks[1] - 1]),
        ratio=through.percentiles["p50"] / here.percentiles["p50"],
        request_bytes=len(request),
        reply_bytes=connection.reply_bytes,
        daemon_mib=resident_mib(served.pid),
        others_cores=used.others_cores,
        busiest=used.busiest,
    )


def infer_request(model: str, feed: Feed) -> bytes:
    """Return one inference request of the Open Inference Protocol, tensors in binary both ways.

    Args:
        model: Its name.
        feed: Arrays by input name.
    """
    from edgekit.daemon.codec import BY_DTYPE, binary_from_array

    inputs, bodies = [], []
    for name, array in feed.items():
        kind = BY_DTYPE["bytes" if array.dtype.kind in "OSU" else array.dtype.name]
        data = bytes(binary_from_array(kind, array))
        size = {"binary_data_size": len(data)}
        inputs.append({"name": name, "datatype": kind.wire, "shape": list(array.shape), "parameters": size})
        bodies.append(data)
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(bodies)
    return (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


class _Connection:
    """One connection that asks the same thing again and again."""

    def __init__(self, path: Path, request: bytes) -> None:
        self._path, self._request = path, request
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._room = bytearray(1 << 16)
        self.reply_bytes = 0

    def __enter__(self) -> _Connection:  # noqa: PYI034  typing.Self needs Python 3.11
        self._socket.settimeout(_PATIENCE_S)
        try:
            self._socket.connect(str(self._path))
        except OSError as error:
            self._socket.close()
            raise MachineError(f"the daemon cannot be reached: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self) -> None:
        """Send the request and read the whole reply."""
        try:
            self._socket.sendall(self._request)
            self._read()
        except OSError as error:
            raise MachineError(f"the daemon went away: {error}") from error

    def _read(self) -> None:
        view, got, total = memoryview(self._room), 0, 0
        while not total or got < total:
            count = self._socket.recv_into(view[got:])
            if not count:
                raise MachineError("the daemon closed the connection in the middle of a reply")
            got += count
            if not total:
                total = self._expected(got)
                if total > len(self._room):
                    room = bytearray(total)
                    room[:got] = view[:got]
                    view.release()
                    self._room, view = room, memoryview(room)
        self.reply_bytes = total

    def _expected(self, got: int) -> int:
        """Return the reply's length, head and body, once its head is here; 0 before."""
        stop = self._room.find(b"\r\n\r\n", 0, got)
        if stop < 0:
            if got == len(self._room):
                raise MachineError("the daemon's reply has no end to its head")
            return 0
        head = bytes(self._room[:stop]).decode("latin-1")
        status = head.split(" ", 2)[1] if " " in head else ""
        if status != "200":
            raise MachineError(
                f"the daemon answered {status or 'nothing'}: {bytes(self._room[stop + 4 : got])[:200].decode('utf-8', 'replace')}"
            )
        lengths = [
            line.partition(":")[2]
            for line in head.split("\r\n")
            if line.lower().startswith("content-length:")
        ]
        if len(lengths) != 1:
            raise MachineError("the daemon's reply does not say its length")
        return stop + 4 + int(lengths[0])


def _paced(call: Callable[[], object], count: int, period_ns: int) -> np.ndarray:
    """Return the time of each of `count` calls, begun `period_ns` apart where they keep up; int64 [count], in ns."""
    times = []
    begin = perf_counter_ns()
    for rank in range(count):
        wait_s = (begin + rank * period_ns - perf_counter_ns()) / 1e9
        if wait_s > 0:
            time.sleep(wait_s)
        began = perf_counter_ns()
        call()
        times.append(perf_counter_ns() - began)
    return np.array(times, np.int64)
