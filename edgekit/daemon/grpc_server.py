"""gRPC's thread: its own event loop, the sockets, and how an error becomes a status."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from edgekit.daemon.grpc_schema import HEALTH, INFERENCE, message_class
from edgekit.daemon.grpc_service import CODES, Method, Service, StreamError
from edgekit.daemon.http1 import HttpError
from edgekit.errors import MachineError, UnavailableError

if TYPE_CHECKING:
    from edgekit.daemon.catalog import Catalog
    from edgekit.daemon.inbound import Limits
    from edgekit.daemon.library import Library

__all__ = ["GrpcServer", "check_installed"]

_log = logging.getLogger("edgekit.daemon")

#: Calls open at once, streams among them.
_MOST_CALLS = 64
#: What a message has beside its tensors.
_ENVELOPE_BYTES = 1 << 20
_WATCH_S = 0.5
#: In place of the time since when a call's message is awaited.
_OVERDUE = -1.0
_MESSAGE_CHARACTERS = 1000


def check_installed() -> None:
    """Refuse to go on where the extra is missing.

    Raises:
        UnavailableError: It is.
    """
    try:
        import google.protobuf.message  # noqa: F401
        import grpc  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            "gRPC needs the packages grpcio and protobuf", hint="Run: pip install 'edgekit-deploy[grpc]'."
        ) from error


class GrpcServer:
    """The protocol over gRPC, in a thread of its own.

    Args:
        catalog: What is served.
        library: What may be loaded.
        limits: What clients may ask; the size of bodies and what they take together are HTTP's.
        address: Host and port, port 0 for any.
    """

    def __init__(self, catalog: Catalog, library: Library, limits: Limits, address: tuple[str, int]) -> None:
        self._service = Service(catalog, library, limits.room())
        self._limits, self._address = limits, address
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._grace_s = 0.0
        self._receiving: dict[asyncio.Task[Any], float] = {}
        self._port = 0
        self._listening = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="grpc", daemon=True)

    def start(self) -> tuple[str, int]:
        """Listen, and return where.

        Raises:
            MachineError: The address is not to be had.
        """
        self._thread.start()
        self._listening.wait()
        if self._failure is not None:
            host, port = self._address
            raise MachineError(
                f"cannot listen on {host}:{port}: {self._failure}",
                hint="Stop what listens there, or give another address with --grpc.",
            ) from self._failure
        return self._address[0], self._port

    def stop(self, grace_s: float) -> None:
        """Take no new calls, and cut off what is under way after `grace_s` seconds; returns at once."""

        def begin() -> None:
            self._grace_s = grace_s
            self._stop.set()

        try:
            self._loop.call_soon_threadsafe(begin)
        except RuntimeError:
            return  # it has ended

    @property
    def running(self) -> bool:
        """Tell whether the thread has not ended."""
        return self._thread.is_alive()

    def join(self, patience_s: float) -> None:
        """Wait for the end."""
        self._thread.join(patience_s)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:  # noqa: BLE001  raised again by `start`, which waits for it
            self._failure = error
            if self._listening.is_set():
                _log.exception("gRPC has ended")
        finally:
            self._loop.close()
            self._listening.set()

    async def _serve(self) -> None:
        import grpc

        server = grpc.aio.server(options=self._options(), maximum_concurrent_rpcs=_MOST_CALLS)
        server.add_generic_rpc_handlers(self._handlers())
        host, port = self._address
        self._port = server.add_insecure_port(f"{f'[{host}]' if ':' in host else host}:{port}")
        await server.start()
        self._listening.set()
        reaper = asyncio.ensure_future(self._give_up_on_slow_clients())
        await self._stop.wait()
        reaper.cancel()
        await server.stop(self._grace_s)

    def _options(self) -> list[tuple[str, int]]:
        limits = self._limits
        return [
            ("grpc.max_receive_message_length", limits.body_bytes + _ENVELOPE_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # else two servers could share a port and not know
            ("grpc.max_connection_idle_ms", int(limits.idle_s * 1000)),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
        ]

    def _handlers(self) -> tuple[Any, ...]:
        import grpc

        unary = {name: self._unary(method) for name, method in self._service.methods().items()}
        stream = grpc.stream_stream_rpc_method_handler(self._stream)
        check = self._unary(self._check_health)
        watch = grpc.unary_stream_rpc_method_handler(self._watch_health)
        return (
            grpc.method_handlers_generic_handler(INFERENCE, {**unary, "ModelStreamInfer": stream}),
            grpc.method_handlers_generic_handler(HEALTH, {"Check": check, "Watch": watch}),
        )

    def _unary(self, method: Method) -> Any:
        """Return a handler that waits for the one message itself: only so a client may be given up that never sends it."""
        import grpc

        async def handle(requests: AsyncIterator[bytes], context: Any) -> bytes:
            return await _answered(method, await self._receive(requests, context), context)

        return grpc.stream_unary_rpc_method_handler(handle)

    async def _receive(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        self._receiving[task] = time.monotonic()
        try:
            return await anext(requests)
        except StopAsyncIteration:
            await _abort(context, HttpError(400, "the call has no message"))
            raise
        except asyncio.CancelledError:
            if self._receiving[task] == _OVERDUE:
                await _abort(context, HttpError(408, "the call's message took too long"))
            raise
        finally:
            del self._receiving[task]

    async def _give_up_on_slow_clients(self) -> None:
        limits = self._limits
        patience_s = limits.body_s + limits.body_bytes / limits.slowest_bytes_per_s
        while True:
            await asyncio.sleep(min(1.0, patience_s / 4))
            overdue = time.monotonic() - patience_s
            for task, since in tuple(self._receiving.items()):
                if _OVERDUE < since < overdue:
                    self._receiving[task] = _OVERDUE
                    task.cancel()

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer a stream; an error goes in band, or ends it where the client wants it so (triton_grpc_error)."""
        strict = any(
            key == "triton_grpc_error" and str(value).lower() == "true"
            for key, value in context.invocation_metadata() or ()
        )
        async for answer in self._service.stream(requests):
            if isinstance(answer, bytes):
                yield answer
            elif strict:
                await _abort(context, answer.error)
            else:
                yield _in_band(answer)

    async def _check_health(self, data: bytes) -> bytes:
        status = self._service.health(_service_of(data))
        if status is None:
            raise HttpError(404, "unknown service")
        return _health(status)

    async def _watch_health(self, data: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            service = _service_of(data)
        except HttpError as error:
            await _abort(context, error)
            raise
        said: int | None = None
        while not self._stop.is_set():
            status = self._service.health(service)
            status = 3 if status is None else status
            if status != said:
                said = status
                yield _health(status)
            await asyncio.sleep(_WATCH_S)


async def _answered(method: Callable[[bytes], Awaitable[bytes]], data: bytes, context: Any) -> bytes:
    try:
        return await method(data)
    except HttpError as error:
        await _abort(context, error)
        raise
    except Exception as error:
        _log.exception("a gRPC call failed")
        await _abort(context, HttpError(500, f"internal error: {error}"))
        raise


async def _abort(context: Any, error: HttpError) -> None:
    import grpc

    code = getattr(grpc.StatusCode, CODES.get(error.status, "UNKNOWN"))
    await context.abort(code, _said(error))


def _in_band(failure: StreamError) -> bytes:
    response = message_class("inference.ModelStreamInferResponse")
    made = response(error_message=_said(failure.error), infer_response={"id": failure.id})
    return bytes(made.SerializeToString())


def _said(error: HttpError) -> str:
    return error.message[:_MESSAGE_CHARACTERS]


def _service_of(data: bytes) -> str:
    from google.protobuf.message import DecodeError

    try:
        return str(message_class("grpc.health.v1.HealthCheckRequest").FromString(data).service)
    except DecodeError as error:
        raise HttpError(400, f"the request is not a HealthCheckRequest: {error}") from error


def _health(status: int) -> bytes:
    return bytes(message_class("grpc.health.v1.HealthCheckResponse")(status=status).SerializeToString())
