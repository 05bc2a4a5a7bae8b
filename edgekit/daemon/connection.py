"""One connection: the thin shell between a socket and the daemon's pure parts.

Replies go straight to the socket while nothing is queued in front of them: a large output is sent from where the
model left it, and the model's lock is held only until the kernel, or a copy, has it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from edgekit.daemon.application import EMPTY, Application, Job
from edgekit.daemon.http1 import CONTINUE, Head, HeadParser, HttpError, Reply, error_reply, head_of
from edgekit.daemon.http_call import HttpCall
from edgekit.daemon.inbound import Inbound, Limits
from edgekit.daemon.lane import Lane
from edgekit.daemon.room import Room

if TYPE_CHECKING:
    from edgekit.daemon.http1 import Chunk

__all__ = ["Connection", "Rooms"]

_log = logging.getLogger("edgekit.daemon")
Work = TypeVar("Work")
Result = TypeVar("Result")

#: `writev` takes at most 1024 buffers (IOV_MAX on Linux).
_MOST_BUFFERS = 512
_HIGH_WATER_BYTES = 1 << 20
#: Pipelined requests that one connection has answered before the others have their turn.
_TURN_REQUESTS = 4
_DISCARD = bytearray(64 << 10)


class Rooms(NamedTuple):
    """What the connections of a daemon share.

    Attributes:
        bodies: For what they have received.
        replies: For what they have not been able to send yet.
    """

    bodies: Room
    replies: Room


class Connection(asyncio.BufferedProtocol):
    """Read requests, have them answered in order, write the replies.

    Args:
        application: What answers.
        parse_head: Parser of request heads.
        limits: What the client may send, and how slowly.
        connections: Where this one is listed while it is open.
        rooms: What all of them may hold together.
    """

    def __init__(
        self,
        application: Application,
        parse_head: HeadParser,
        limits: Limits,
        connections: set[Connection],
        rooms: Rooms,
    ) -> None:
        self._application, self._limits, self._connections = application, limits, connections
        self._inbound = Inbound(parse_head, limits, rooms.bodies)
        self._replies, self._unsent = rooms.replies, 0
        self._transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()
        self._socket = -1
        self._call: HttpCall | Job | None = None  # in another thread
        self._blocked = False  # the client does not take what is sent
        self._yielded = False  # others have their turn before this one's next request
        self._reading = True
        self._closing = False  # no further request is read
        self._lingering = False  # the last reply is out, the client has not closed yet
        self._half_closed = False
        self._continued = False
        self._served = 0
        self._mark: tuple[object, ...] = ()
        self._mark_s = self._patience_s = 0.0

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        self._socket = transport.get_extra_info("socket").fileno()
        if len(self._connections) >= self._limits.connections:
            self._turn_away()
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Forget everything; a call that has not begun is dropped."""
        self._closing = True
        self._socket = -1
        if self._call is not None:
            self._call.abandoned = True  # the worker may be reading its body: `_worked` releases that
        else:
            self._inbound.release()
        self._count_unsent(0)
        self._connections.discard(self)

    def get_buffer(self, sizehint: int) -> bytearray | memoryview:  # noqa: ARG002
        """Say where the next bytes go."""
        return _DISCARD if self._closing else self._inbound.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Take note of what has arrived and answer what is complete."""
        if self._closing:
            return
        self._inbound.received(nbytes)
        if self._call is None and not self._yielded:
            self._pump()
        if not self._closing and not self._inbound.has_room:
            self._pause()

    def eof_received(self) -> bool:
        """Finish what is under way for a client that has only closed its sending half."""
        self._half_closed = True
        if self._waiting and not self._closing:
            return True
        if self._inbound.partial and not self._closing:
            self._refuse(HttpError(400, "the request is cut off", close=True))
        return False

    def pause_writing(self) -> None:
        """Read no further request while the client does not take the replies."""
        self._blocked = True
        self._pause()

    def resume_writing(self) -> None:
        """Go on."""
        self._blocked = False
        self._count_unsent(self._transport.get_write_buffer_size())
        self._resume()

    # Requests.

    @property
    def _waiting(self) -> bool:
        """Tell whether the next request must wait: for the worker, the client, or the others' turn."""
        return self._call is not None or self._blocked or self._yielded

    def _pump(self) -> None:
        """Answer the complete requests, in order, until one must wait."""
        for _ in range(_TURN_REQUESTS):
            if self._waiting or self._closing:
                return
            try:
                request = self._inbound.next()
                if request is None:
                    self._await_body()
                    return
            except HttpError as error:
                self._refuse(error)
                return
            self._continued = False
            self._serve(request.head, request.body)
        self._yielded = True
        self._loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._yielded = False
        self._resume()

    def _await_body(self) -> None:
        """Tell a client that asks first whether its body is welcome."""
        head = self._inbound.awaiting_body
        if head is None or self._continued or not head.expects_continue:
            return
        self._continued = True
        if self._inbound.body_started:
            return
        try:
            self._application.admit(head)
        except HttpError as error:
            raise HttpError(error.status, error.message, headers=error.headers, close=True) from error
        self._write([CONTINUE], len(CONTINUE))

    def _serve(self, head: Head, body: memoryview) -> None:
        lane: Lane | None = None
        try:
            answer = self._application.respond(head, body)
            if isinstance(answer, HttpCall):
                lane = answer.lane
                self._infer(answer)
                return
            if isinstance(answer, Job):
                self._start(answer)
                return
        except HttpError as error:
            answer = error_reply(error)
        except Exception as error:  # noqa: BLE001  a bug of ours: this request fails, the daemon lives
            _log.exception("%s %s failed", head.method, head.target[:200])
            answer = error_reply(HttpError(500, f"internal error: {error}"))
        self._finish(head, lane, answer)

    def _infer(self, call: HttpCall) -> None:
        lane = call.lane
        lane.admit()
        lock = lane.model.lock
        if call.light:
            inference = call.decode()
            if lane.may_run_here(inference.rows) and lock.acquire(blocking=False):
                try:
                    reply = lane.execute(call, inference)
                    if not call.shrinks(reply):
                        # the lock is held until the outputs, which the reply views, have been sent or copied
                        self._finish(call.head, lane, reply)
                        return
                    call.answer = call.keep(reply)  # compressing it would take the loop too long
                finally:
                    lock.release()
        loop = self._loop
        lane.submit(call, lambda reply: _tell(loop, self._worked, call, reply))
        self._call = call

    def _start(self, job: Job) -> None:
        loop = self._loop
        self._application.library.submit(job.work, lambda error: _tell(loop, self._done, job, error))
        self._call = job

    def _worked(self, call: HttpCall, reply: Reply) -> None:
        """Send what the worker has answered, and go on with the next request."""
        call.lane.left()
        self._call = None
        if call.abandoned:
            self._inbound.release()
            call.lane.count(499)  # as nginx counts a client that has gone
            return
        self._finish(call.head, call.lane, reply)
        self._resume()

    def _done(self, job: Job, error: HttpError | None) -> None:
        """Send what the library has answered, and go on with the next request."""
        self._call = None
        if job.abandoned:
            self._inbound.release()
            return
        self._finish(job.head, None, EMPTY if error is None else error_reply(error))
        self._resume()

    def _finish(self, head: Head, lane: Lane | None, reply: Reply) -> None:
        keep_alive = head.keep_alive and not self._application.draining
        (lane or self._application).count(reply.status)
        self._served += 1
        start = head_of(reply, keep_alive=keep_alive, old=head.old)
        if head.method == "HEAD":
            self._write([start], len(start))
        else:
            self._write([start, *reply.chunks], len(start) + reply.length, owned=reply.owned)
        self._inbound.done()
        if not keep_alive:
            self._close()

    def _refuse(self, error: HttpError) -> None:
        """Answer what cannot be read any further, and close once the client has had time to read it."""
        reply = error_reply(error)
        self._application.count(reply.status)
        self._inbound.release()
        start = head_of(reply, keep_alive=False)
        self._write([start, *reply.chunks], len(start) + reply.length)
        self._close()

    def _turn_away(self) -> None:
        """Tell one client too many to come again; nothing is read from it."""
        reply = error_reply(HttpError(503, "too many connections", headers={"Retry-After": "1"}))
        self._application.count(reply.status)
        start = head_of(reply, keep_alive=False)
        self._write([start, *reply.chunks], len(start) + reply.length)
        self._closing = True
        self._transport.close()

    # Writing and closing.

    def _write(self, chunks: Sequence[Chunk], size: int, *, owned: bool = True) -> None:
        """Send what the kernel takes at once and leave the rest to the transport.

        Args:
            chunks: What to send.
            size: Of all of it in bytes.
            owned: The chunks stay as they are until they are sent; if not, what cannot be sent now is copied.
        """
        if self._transport.is_closing():
            return
        sent = 0
        if len(chunks) <= _MOST_BUFFERS and not self._transport.get_write_buffer_size():
            try:
                sent = os.writev(self._socket, chunks)
            except BlockingIOError:
                pass
            except OSError:
                self._transport.abort()
                return
        if sent < size:
            rest = _after(chunks, sent)
            self._transport.writelines(rest if owned else [b"".join(rest)])
            self._count_unsent(self._transport.get_write_buffer_size())

    def _count_unsent(self, size: int) -> None:
        """Take room for what waits to be sent, or give it back; without room the client is cut off."""
        more = size - self._unsent
        if more <= 0:
            self._replies.give(-more)
        elif not self._replies.take(more, own=self._unsent):
            _log.warning("a client that does not take its reply is cut off: others wait for memory")
            self._transport.abort()
            return
        self._unsent = size

    def _close(self) -> None:
        """Close after what has been written, once the client has had time to read it (RFC 9112 §9.6).

        A socket that is closed with unread bytes resets the connection, and the client never sees the reply:
        so what it still sends is read and dropped until it closes its side.
        """
        self._closing = True
        if self._half_closed or self._transport.is_closing():
            self._transport.close()
            return
        self._lingering = True
        self._transport.write_eof()
        self._resume_reading()
        self._loop.call_later(self._limits.linger_s, self._transport.close)

    def _pause(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _resume(self) -> None:
        if not self._waiting and not self._closing:
            self._pump()
            if self._half_closed and not self._waiting:
                self._transport.close()
        if self._closing or (self._call is None and not self._blocked and self._inbound.has_room):
            self._resume_reading()

    def _resume_reading(self) -> None:
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    # What the daemon calls.

    @property
    def busy(self) -> bool:
        """Tell whether a request is under way, or a reply that the client has not taken yet."""
        if self._transport.is_closing():
            return self._socket != -1
        waiting = self._call is not None or self._lingering or self._inbound.partial
        return waiting or self._transport.get_write_buffer_size() > 0

    def close_idle(self) -> None:
        """Close unless something is under way."""
        if not self.busy:
            self._closing = True
            self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._transport.abort()

    def check(self, now_s: float) -> None:
        """Give up on a client that is too slow; called about once a second.

        Args:
            now_s: Monotonic.
        """
        self._count_unsent(self._transport.get_write_buffer_size())
        phase = self._phase()
        mark = (phase, self._served)
        if mark != self._mark:
            self._mark, self._mark_s, self._patience_s = mark, now_s, self._patience(phase)
            return
        if phase == "idle":
            self._inbound.trim()
        waited_s = now_s - self._mark_s
        if waited_s < self._patience_s:
            return
        if phase in ("head", "body"):
            self._refuse(HttpError(408, f"the request's {phase} took more than {waited_s:.0f} s", close=True))
        elif phase == "idle":
            self._transport.close()
        else:
            self._transport.abort()

    def _phase(self) -> str:
        if self._transport.get_write_buffer_size():
            return "write"
        if self._call is not None:
            return "call"
        if self._closing:
            return "linger"
        if self._inbound.awaiting_body is not None:
            return "body"
        return "head" if self._inbound.partial else "idle"

    def _patience(self, phase: str) -> float:
        """Return the seconds that the phase which begins now may take."""
        limits = self._limits
        if phase == "write":  # whatever the client takes, at that pace it has to take all
            return limits.write_s + self._transport.get_write_buffer_size() / limits.slowest_bytes_per_s
        if phase == "body":
            head = self._inbound.awaiting_body
            length = limits.body_bytes if head is None or head.length is None else head.length
            return limits.body_s + length / limits.slowest_bytes_per_s
        return {
            "call": float("inf"),
            "linger": 2 * limits.linger_s,
            "head": limits.head_s,
            "idle": limits.idle_s,
        }[phase]


def _after(chunks: Sequence[Chunk], sent: int) -> list[memoryview]:
    """Return views of what follows the first `sent` bytes of the chunks."""
    rest: list[memoryview] = []
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        if sent < view.nbytes:
            rest.append(view[sent:])
        sent = max(0, sent - view.nbytes)
    return rest


def _tell(
    loop: asyncio.AbstractEventLoop, answer: Callable[[Work, Result], None], work: Work, result: Result
) -> None:
    """Hand a result from another thread to the event loop, unless the loop has ended meanwhile."""
    try:
        loop.call_soon_threadsafe(answer, work, result)
    except RuntimeError:
        _log.debug("a reply came after the end")
