"""One model's way through the daemon: admission, a bounded queue, and where a call runs.

A call runs in its own event loop when it is known to be short and the session is free at once: a hop to another
thread costs more than a small model does. Everything else goes to the model's own worker thread. HTTP and gRPC have
an event loop each; what they share here is safe in any thread.
"""

from __future__ import annotations

import abc
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from edgekit.daemon.http1 import HttpError
from edgekit.daemon.signature import Inference, Signature
from edgekit.daemon.statistics import Statistics
from edgekit.errors import EdgeKitError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from edgekit.daemon.sharedmemory import Regions
    from edgekit.manifest import Plan
    from edgekit.monitor.monitor import ModelMonitor
    from edgekit.runtimes.base import Session
    from edgekit.tensors import TensorSpec

__all__ = ["Call", "Lane", "Servable", "ServiceTime"]

_log = logging.getLogger("edgekit.daemon")

Answer = TypeVar("Answer")

#: A call that is expected to take longer than this leaves the event loop.
INLINE_S = 0.002
#: A request whose decoding takes Python more than this many bytes of text is decoded in the worker.
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
    labels: Sequence[str]

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


class Call(abc.ABC, Generic[Answer]):
    """One inference request on its way: how its protocol reads it and writes the answer.

    Args:
        lane: Of the model.

    Attributes:
        inference: The decoded request, once `decode` has been called.
        answer: What the model has answered already; the worker has only to `finish` it.
        abandoned: The client has gone.
        arrived_ns: When the request was complete.
        decode_ns: What decoding it has taken.
    """

    __slots__ = ("abandoned", "answer", "arrived_ns", "decode_ns", "inference", "lane")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.inference: Inference | None = None
        self.answer: Answer | None = None
        self.abandoned = False
        self.arrived_ns, self.decode_ns = time.perf_counter_ns(), 0

    def decode(self) -> Inference:
        """Decode the request, once.

        Raises:
            HttpError: It is not a request that this model can answer.
        """
        if self.inference is None:
            begin = time.perf_counter_ns()
            self.inference = self._decode()
            self.decode_ns = time.perf_counter_ns() - begin
        return self.inference

    @property
    @abc.abstractmethod
    def light(self) -> bool:
        """Tell whether decoding it is quick enough for the event loop."""

    @abc.abstractmethod
    def _decode(self) -> Inference:
        """Decode the request."""

    @abc.abstractmethod
    def encode(self, inference: Inference, outputs: Mapping[str, np.ndarray]) -> Answer:
        """Return the answer, which may hold views of the outputs.

        Raises:
            HttpError: An output cannot be sent as it was asked for.
        """

    @abc.abstractmethod
    def keep(self, answer: Answer) -> Answer:
        """Return the answer with copies in place of views: another call may run before it is sent."""

    @abc.abstractmethod
    def finish(self, answer: Answer) -> Answer:
        """Do what takes too long for the event loop and does not need the model."""

    @abc.abstractmethod
    def refuse(self, error: HttpError) -> Answer:
        """Return the answer that says no."""


class Lane:
    """One loaded model, its queue and its counters.

    Args:
        model: What to serve.
        queue_limit: Calls that may wait or run in the worker; more are refused.
        body_limit: Largest request body after decompression, in bytes.
        regions: Shared memory; None where it is off.
    """

    def __init__(
        self, model: Servable, *, queue_limit: int, body_limit: int, regions: Regions | None = None
    ) -> None:
        self.model = model
        self.signature = Signature(
            model.name, str(model.version), model.inputs, model.outputs, regions, model.labels
        )
        self.takes_strings = any(spec.dtype == "bytes" for spec in model.inputs)
        self.body_limit = body_limit
        self.service, self.statistics = ServiceTime(), Statistics()
        self.waiting = 0
        self.answered: dict[int | str, int] = {}
        #: Whether the arrays that the session returns are the caller's own.
        self.fresh = model.session.fresh_outputs
        self._limit = queue_limit
        self._stopped = False
        self._gate = threading.Lock()  # of what event loops, worker and control change
        self._jobs: queue.SimpleQueue[tuple[Call[Any], Callable[[Any], None]] | None] = queue.SimpleQueue()
        # a daemon thread: one that is stuck in native code must not keep the process from ending
        self._worker = threading.Thread(target=self._work, name=f"infer-{model.name}", daemon=True)
        self._worker.start()

    def metadata(self) -> dict[str, object]:
        """Return the protocol's description of the model."""
        return {
            "name": self.signature.name,
            "versions": [self.signature.version],
            "platform": self.platform,
            "inputs": [port.metadata() for port in self.signature.inputs.values()],
            "outputs": [port.metadata() for port in self.signature.outputs.values()],
        }

    @property
    def platform(self) -> str:
        """Name the runtime and the format, as the protocol does."""
        plan = self.model.plan
        kind = plan.artifact.partition("-")[0]
        return kind if kind == plan.runtime else f"{plan.runtime}_{kind}"

    def may_run_here(self, rows: int) -> bool:
        """Tell whether the event loop may run a call of `rows` itself."""
        return not self.waiting and self.service.expect(rows) < INLINE_S

    def execute(self, call: Call[Answer], inference: Inference) -> Answer:
        """Run the model and build the answer, which may view its outputs; the caller holds the model's lock.

        Raises:
            HttpError: 400, the model does not take this feed; 500, the runtime failed; 503, it was unloaded.
        """
        begin = time.perf_counter_ns()
        try:
            if inference.shared:
                self.signature.fetch(inference)
            fetched = time.perf_counter_ns()
            outputs = self.model.infer(inference.feed)
            ran = time.perf_counter_ns()
            answer = call.encode(inference, outputs)
        except HttpError:
            self.statistics.failed(time.perf_counter_ns() - begin)
            raise
        except EdgeKitError as error:
            self.statistics.failed(time.perf_counter_ns() - begin)
            raise self._explained(error) from error
        end = time.perf_counter_ns()
        self.service.note(inference.rows, (end - begin) * 1e-9)
        self.statistics.served(
            inference.rows,
            max(0, begin - call.arrived_ns - call.decode_ns),
            call.decode_ns + fetched - begin,
            ran - fetched,
            end - ran,
        )
        return answer

    def _explained(self, error: EdgeKitError) -> HttpError:
        """Return what to tell the client of an error."""
        if isinstance(error, UsageError):
            return self._unloaded() if self._stopped else HttpError(400, str(error))
        _log.error("model %s: %s", self.signature.name, error)
        return HttpError(500, f"model {self.signature.name!r}: {error}")

    def _unloaded(self) -> HttpError:
        return HttpError(
            503, f"model {self.signature.name!r} is being unloaded", headers={"Retry-After": "1"}
        )

    def admit(self) -> None:
        """Refuse a call that there is no room for.

        Raises:
            HttpError: 503, the queue is full, or the model is being unloaded.
        """
        if self._stopped:
            raise self._unloaded()
        if self.waiting < self._limit:
            return
        each_s = self.service.expect(1)
        wait_s = self.waiting * min(each_s, 60.0) if math.isfinite(each_s) else 0.0
        raise HttpError(
            503,
            f"the queue of model {self.signature.name!r} is full: {self.waiting} requests are waiting",
            headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
        )

    def submit(self, call: Call[Answer], answer: Callable[[Answer], None]) -> None:
        """Queue a call for the worker, which calls `answer` from its own thread; then `left` is to be called.

        Raises:
            HttpError: 503, as in `admit`.
        """
        with self._gate:
            self.admit()
            self.waiting += 1
            self._jobs.put((call, answer))

    def left(self) -> None:
        """Take note that a submitted call has been answered."""
        with self._gate:
            self.waiting -= 1

    def count(self, status: int | str) -> None:
        """Count an answer by its status: HTTP's number, or gRPC's name. Each is counted in its own event loop alone."""
        self.answered[status] = self.answered.get(status, 0) + 1

    def stop(self, patience_s: float = 1.0) -> None:
        """End the worker after what is queued, and free the model unless a call is stuck in it.

        Args:
            patience_s: How long to wait for what is queued.
        """
        with self._gate:
            self._stopped = True
            self._jobs.put(None)
        self._worker.join(timeout=patience_s)
        if not self._worker.is_alive():
            self.model.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, answer = job
            answer(call.refuse(_GONE) if call.abandoned else self._answer(call))

    def _answer(self, call: Call[Answer]) -> Answer:
        try:
            if call.answer is None:
                inference = call.decode()
                with self.model.lock:
                    call.answer = call.keep(self.execute(call, inference))
            return call.finish(call.answer)
        except HttpError as error:
            return call.refuse(error)
        except Exception as error:  # noqa: BLE001  a bug of ours: this request fails, the worker lives
            _log.exception("a request to model %s failed", self.signature.name)
            return call.refuse(HttpError(500, f"internal error: {error}"))


_GONE = HttpError(500, "the client has gone")
