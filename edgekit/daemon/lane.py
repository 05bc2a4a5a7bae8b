"""One model's way through the daemon: admission, a bounded queue, and where a call runs.

A call runs in the event loop itself when it is known to be short and the session is free at once: a hop to
another thread costs more than a small model does. Everything else goes to the model's own worker thread.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import msgspec

from edgekit.daemon import oip
from edgekit.daemon.compression import decompress
from edgekit.daemon.http1 import Head, HttpError, Reply, error_reply
from edgekit.errors import EdgeKitError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from edgekit.manifest import Plan
    from edgekit.monitor.monitor import ModelMonitor
    from edgekit.runtimes.base import Session
    from edgekit.tensors import TensorSpec

__all__ = ["Call", "Lane", "Servable", "ServiceTime"]

_log = logging.getLogger("edgekit.daemon")

#: A call that is expected to take longer than this leaves the event loop.
INLINE_S = 0.002
#: JSON longer than this is decoded in the worker; so is anything compressed, and long lists of strings.
INLINE_JSON_BYTES = 64 << 10


class Servable(Protocol):
    """What the daemon serves: `edgekit.model.Model`."""

    name: str
    version: int
    plan: Plan
    session: Session
    lock: threading.Lock
    monitor: ModelMonitor | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def infer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; the caller holds `lock` until it has used the outputs."""

    def close(self) -> None:
        """Free the native model."""


class ServiceTime:
    """What a call is expected to take, learnt from those before it, for each power of two of rows."""

    _WEIGHT = 0.2
    _MOST_GROWTH = 8.0

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def note(self, rows: int, seconds: float) -> None:
        """Take note of a call; one that was held up by something else moves the estimate only a little."""
        size = rows.bit_length()
        known = self._seconds.get(size)
        if known is not None:
            seconds = known + self._WEIGHT * (min(seconds, self._MOST_GROWTH * known) - known)
        self._seconds[size] = seconds

    def expect(self, rows: int) -> float:
        """Return the seconds that a call of `rows` is expected to take; infinity when nothing is known."""
        size = rows.bit_length()
        known = self._seconds.get(size)
        if known is not None:
            return known
        smaller = [other for other in self._seconds if other < size]
        if smaller:
            nearest = max(smaller)
            return self._seconds[nearest] * 2.0 ** (size - nearest)
        return min(self._seconds.values(), default=math.inf)


class Call:
    """One inference request on its way.

    Args:
        lane: Of the model.
        head: The request's.
        body: The request's; a view that is valid until the call has been answered.
    """

    __slots__ = ("abandoned", "body", "head", "inference", "lane")

    def __init__(self, lane: Lane, head: Head, body: memoryview) -> None:
        self.lane, self.head, self.body = lane, head, body
        self.inference: oip.Inference | None = None
        self.abandoned = False

    @property
    def light(self) -> bool:
        """Tell whether decoding it is quick enough for the event loop."""
        head, size = self.head, len(self.body)
        if head.encoding:
            return False
        if size <= INLINE_JSON_BYTES:
            return True
        json_length = head.json_length
        return json_length is not None and json_length <= INLINE_JSON_BYTES and not self.lane.takes_strings

    def decode(self) -> oip.Inference:
        """Decode the body, once.

        Raises:
            HttpError: It is not a request that this model can answer.
        """
        if self.inference is None:
            body = self.body
            if self.head.encoding:
                body = decompress(body, self.head.encoding, self.lane.body_limit)
            self.inference = oip.decode_inference(self.lane.signature, body, self.head.json_length)
        return self.inference


class Lane:
    """One loaded model, its queue and its counters.

    Args:
        model: What to serve.
        queue_limit: Calls that may wait or run in the worker; more are refused.
        body_limit: Largest request body after decompression, in bytes.
        clock: Monotonic, in seconds.
    """

    def __init__(
        self,
        model: Servable,
        *,
        queue_limit: int,
        body_limit: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.signature = oip.Signature(model.name, str(model.version), model.inputs, model.outputs)
        self.takes_strings = any(spec.dtype == "bytes" for spec in model.inputs)
        self.body_limit = body_limit
        self.service = ServiceTime()
        self.waiting = 0
        self.answered: dict[int, int] = {}
        self._limit, self._clock = queue_limit, clock
        self._fresh = model.session.fresh_outputs
        self._jobs: queue.SimpleQueue[tuple[Call, Callable[[Reply], None]] | None] = queue.SimpleQueue()
        # a daemon thread: one that is stuck in native code must not keep the process from ending
        self._worker = threading.Thread(target=self._work, name=f"infer-{model.name}", daemon=True)
        self._worker.start()

    def metadata(self) -> dict[str, object]:
        """Return the protocol's description of the model."""
        plan = self.model.plan
        kind = plan.artifact.partition("-")[0]
        return {
            "name": self.signature.name,
            "versions": [self.signature.version],
            "platform": kind if kind == plan.runtime else f"{plan.runtime}_{kind}",
            "inputs": [port.metadata() for port in self.signature.inputs.values()],
            "outputs": [port.metadata() for port in self.signature.outputs.values()],
        }

    def may_run_here(self, rows: int) -> bool:
        """Tell whether the event loop may run a call of `rows` itself."""
        return not self.waiting and self.service.expect(rows) < INLINE_S

    def execute(self, inference: oip.Inference) -> Reply:
        """Run the model and build the reply, which may view its outputs; the caller holds the model's lock.

        Raises:
            HttpError: 400, the model does not take this feed; 500, the runtime failed.
        """
        started = self._clock()
        try:
            outputs = self.model.infer(inference.feed)
            reply = oip.encode_outputs(self.signature, inference, outputs)
            reply.owned = self._fresh
        except UsageError as error:
            raise HttpError(400, str(error)) from error
        except EdgeKitError as error:
            _log.error("model %s: %s", self.signature.name, error)
            raise HttpError(500, f"model {self.signature.name!r}: {error}") from error
        self.service.note(inference.rows, self._clock() - started)
        return reply

    def admit(self) -> None:
        """Refuse a call that there is no room for.

        Raises:
            HttpError: 503, the queue is full.
        """
        if self.waiting < self._limit:
            return
        wait_s = self.waiting * min(self.service.expect(1), 60.0)
        raise HttpError(
            503,
            f"the queue of model {self.signature.name!r} is full: {self.waiting} requests are waiting",
            headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
        )

    def submit(self, call: Call, answer: Callable[[Reply], None]) -> None:
        """Queue an admitted call for the worker, which calls `answer` from its own thread."""
        self.waiting += 1
        self._jobs.put((call, answer))

    def left(self) -> None:
        """Take note that a submitted call has been answered; called in the event loop."""
        self.waiting -= 1

    def count(self, status: int) -> None:
        """Count an answer by its status."""
        self.answered[status] = self.answered.get(status, 0) + 1

    def stop(self) -> None:
        """End the worker after what is queued, and free the model unless a call is stuck in it."""
        self._jobs.put(None)
        self._worker.join(timeout=1.0)
        if not self._worker.is_alive():
            self.model.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, answer = job
            answer(_GONE if call.abandoned else self._answer(call))

    def _answer(self, call: Call) -> Reply:
        try:
            inference = call.decode()
            with self.model.lock:
                reply = self.execute(inference)
                return reply if reply.owned else _owned(reply)
        except HttpError as error:
            return error_reply(error)
        except Exception as error:  # noqa: BLE001  a bug of ours: this request fails, the worker lives
            _log.exception("a request to model %s failed", self.signature.name)
            return error_reply(HttpError(500, f"internal error: {error}"))


_GONE = error_reply(HttpError(500, "the client has gone"))


def _owned(reply: Reply) -> Reply:
    """Return the reply with copies in place of views: another call may run before it is sent."""
    chunks = tuple(chunk if isinstance(chunk, bytes) else chunk.tobytes() for chunk in reply.chunks)
    return msgspec.structs.replace(reply, chunks=chunks, owned=True)
