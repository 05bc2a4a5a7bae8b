"""The gRPC methods: bytes of a message in, bytes of a message out, or an `HttpError`. No sockets here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from edgekit.daemon.grpc_call import GrpcCall
from edgekit.daemon.grpc_schema import METHODS, message_class
from edgekit.daemon.http1 import HttpError

if TYPE_CHECKING:
    from edgekit.daemon.catalog import Catalog
    from edgekit.daemon.lane import Lane
    from edgekit.daemon.library import Library
    from edgekit.daemon.room import Room

__all__ = ["CODES", "Method", "Service", "StreamError"]

Method = Callable[[bytes], Awaitable[bytes]]

#: The gRPC status for each HTTP status that the daemon's parts raise.
CODES = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ALREADY_EXISTS",
    413: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
}


class StreamError(NamedTuple):
    """Why one request of a stream has no response.

    Attributes:
        error: What was wrong.
        id: The request's; empty where it could not be read.
    """

    error: HttpError
    id: str


class Service:
    """Answers messages from the catalog, the library, the lanes and shared memory, as HTTP does.

    Everything here runs in the event loop of gRPC's own thread.

    Args:
        catalog: What is served.
        library: What may be loaded.
        room: What all calls together may hold of requests.
    """

    def __init__(self, catalog: Catalog, library: Library, room: Room) -> None:
        self._catalog, self._library, self._room = catalog, library, room
        self._plain: dict[str, Callable[[Any], Mapping[str, Any]]] = {
            "ServerLive": lambda _: {"live": True},
            "ServerReady": lambda _: {"ready": catalog.ready},
            "ModelReady": lambda asked: {"ready": self._model_ready(asked.name, asked.version)},
            "ServerMetadata": lambda _: catalog.server_metadata(),
            "ModelMetadata": lambda asked: catalog.model_metadata(asked.name, asked.version),
            "ModelConfig": lambda asked: {"config": catalog.model_config(asked.name, asked.version)},
            "ModelStatistics": lambda asked: catalog.statistics(asked.name, asked.version),
            "RepositoryIndex": lambda asked: {"models": library.index(ready=asked.ready)},
            "SystemSharedMemoryStatus": lambda asked: {"regions": self._regions(asked.name)},
            "SystemSharedMemoryRegister": self._register,
            "SystemSharedMemoryUnregister": self._unregister,
            "CudaSharedMemoryStatus": lambda asked: _unsupported() if asked.name else {},
            "CudaSharedMemoryRegister": lambda _: _unsupported(),
            "CudaSharedMemoryUnregister": lambda _: {},  # none can be registered
            "TraceSetting": lambda _: _unsupported(),
            "LogSettings": lambda _: _unsupported(),
        }

    def methods(self) -> dict[str, Method]:
        """Return every unary method by its name."""
        own = {
            "ModelInfer": self._model_infer,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        return {name: own.get(name) or self._method(name) for name in METHODS}

    async def stream(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes | StreamError]:
        """Answer the inference requests of a stream, one after the other, each with a response or its error."""
        async for data in requests:
            request_id = ""
            try:
                with self._held(len(data)):
                    message = _parse(message_class("inference.ModelInferRequest"), data)
                    request_id = message.id
                    yield await self._infer(message, len(data), streamed=True)
            except HttpError as error:
                yield StreamError(error, request_id)

    def health(self, service: str) -> int | None:
        """Return the `ServingStatus` of a service; None where there is no such service."""
        if service not in ("", "inference.GRPCInferenceService"):
            return None
        return 1 if self._catalog.ready else 2

    def _method(self, name: str) -> Method:
        from google.protobuf.json_format import ParseDict

        request, response = (message_class(f"inference.{name}{end}") for end in ("Request", "Response"))
        answer = self._plain[name]

        async def method(data: bytes) -> bytes:
            made = ParseDict(answer(_parse(request, data)), response())
            return bytes(made.SerializeToString())

        return method

    async def _model_infer(self, data: bytes) -> bytes:
        with self._held(len(data)):
            message = _parse(message_class("inference.ModelInferRequest"), data)
            return await self._infer(message, len(data), streamed=False)

    @contextmanager
    def _held(self, size: int) -> Iterator[None]:
        """Hold room for a request's bytes.

        Raises:
            HttpError: 503, the others take all of it.
        """
        if not self._room.take(size):
            raise HttpError(503, "other requests take all the memory that there is for them")
        try:
            yield
        finally:
            self._room.give(size)

    async def _infer(self, message: Any, size: int, *, streamed: bool) -> bytes:
        lane = self._catalog.find(message.model_name, message.model_version)
        try:
            answer = await _run(lane, GrpcCall(lane, message, size, streamed=streamed))
        except HttpError as error:
            answer = error
        if isinstance(answer, HttpError):
            lane.count(CODES.get(answer.status, "UNKNOWN"))
            raise answer
        lane.count("OK")
        return bytes(answer)

    async def _load(self, data: bytes) -> bytes:
        asked = _parse(message_class("inference.RepositoryModelLoadRequest"), data)
        self._library.check(asked.model_name, asked.parameters, ())
        await self._control(lambda: self._library.load(asked.model_name))
        return b""

    async def _unload(self, data: bytes) -> bytes:
        asked = _parse(message_class("inference.RepositoryModelUnloadRequest"), data)
        self._library.check(asked.model_name, asked.parameters, ("unload_dependents",))
        await self._control(lambda: self._library.unload(asked.model_name))
        return b""

    async def _control(self, work: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[HttpError | None] = loop.create_future()
        self._library.submit(work, lambda error: _tell(loop, _settle, done, error))
        error = await done
        if error is not None:
            raise error

    def _model_ready(self, name: str, version: str) -> bool:
        try:
            return self._catalog.model_ready(name, version)
        except HttpError:
            return False

    def _regions(self, name: str) -> dict[str, object]:
        return {str(one["name"]): one for one in self._catalog.shared_memory().status(name)}

    def _register(self, asked: Any) -> dict[str, Any]:
        self._catalog.shared_memory().register(asked.name, asked.key, asked.offset, asked.byte_size)
        return {}

    def _unregister(self, asked: Any) -> dict[str, Any]:
        self._catalog.shared_memory().unregister(asked.name)
        return {}


async def _run(lane: Lane, call: GrpcCall) -> Any:
    """Return the call's finished answer: run here where it is short and the session free, else in the worker."""
    lane.admit()
    lock = lane.model.lock
    if call.light:
        inference = call.decode()
        if lane.may_run_here(inference.rows) and lock.acquire(blocking=False):
            try:
                answer = lane.execute(call, inference)
            finally:
                lock.release()
            return call.finish(answer)
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def answered(future: asyncio.Future[Any], answer: Any) -> None:
        lane.left()
        _settle(future, answer)

    lane.submit(call, lambda answer: _tell(loop, answered, done, answer))
    try:
        return await done
    except asyncio.CancelledError:
        call.abandoned = True
        lane.count("CANCELLED")
        raise


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _tell(
    loop: asyncio.AbstractEventLoop,
    settle: Callable[[asyncio.Future[Any], Any], None],
    future: asyncio.Future[Any],
    result: Any,
) -> None:
    """Hand a result from another thread to the event loop, unless the loop has ended meanwhile."""
    try:
        loop.call_soon_threadsafe(settle, future, result)
    except RuntimeError:
        return


def _parse(kind: Any, data: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise HttpError(400, f"the request is not a {kind.DESCRIPTOR.name}: {error}") from error


def _unsupported() -> Mapping[str, Any]:
    raise HttpError(501, "this extension of the protocol is not supported by this server")
