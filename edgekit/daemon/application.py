"""The HTTP routes: a request in, a `Reply`, a model's call or a job for the library out. No sockets here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from edgekit.daemon import metrics
from edgekit.daemon.compression import decompress
from edgekit.daemon.http1 import Head, HttpError, Reply, json_reply
from edgekit.daemon.http_call import HttpCall
from edgekit.daemon.routes import Route, route

if TYPE_CHECKING:
    from edgekit.daemon.catalog import Catalog
    from edgekit.daemon.library import Library

__all__ = ["EMPTY", "Application", "Job"]

Message = TypeVar("Message")
#: Control messages are small.
_CONTROL_BYTES = 1 << 20
#: What is answered to a request that only changes something.
EMPTY = Reply(200, ())


class Job:
    """Loading or unloading a model on behalf of a request.

    Args:
        head: The request's.
        work: Done in the library's thread; the reply to it is empty.
    """

    def __init__(self, head: Head, work: Callable[[], None]) -> None:
        self.head, self.work = head, work
        self.abandoned = False


class _Index(msgspec.Struct, gc=False):
    ready: bool = False


class _Control(msgspec.Struct, gc=False):
    parameters: dict[str, Any] | None = None


class _Region(msgspec.Struct, gc=False):
    key: str
    byte_size: int
    offset: int = 0


class Application:
    """Answers requests from the catalog, the library and shared memory.

    Args:
        catalog: What is served.
        library: What may be loaded.
    """

    def __init__(self, catalog: Catalog, library: Library) -> None:
        self.catalog, self.library = catalog, library
        self.answered: dict[int, int] = {}

    @property
    def draining(self) -> bool:
        """Tell whether the daemon is about to end."""
        return self.catalog.draining

    def admit(self, head: Head) -> None:
        """Refuse, before the body is there, what would be refused with it.

        Raises:
            HttpError: 404, 405, 411 or 503.
        """
        found = route(head.method, head.target)
        if found.kind == "infer":
            _check_length(head)
            self.catalog.find(found.name, found.version)

    def respond(self, head: Head, body: memoryview) -> Reply | HttpCall | Job:
        """Answer a request, or return what answers it later.

        Raises:
            HttpError: What the client did wrong, or why the daemon cannot.
        """
        found = route(head.method, head.target)
        if found.kind == "infer":
            _check_length(head)
            return HttpCall(self.catalog.find(found.name, found.version), head, body)
        if found.kind in ("load", "unload"):
            return self._job(found, head, body)
        if head.method == "POST":
            return self._change(found, head, body)
        return self._inform(found)

    def count(self, status: int) -> None:
        """Count an answer that no model's lane counts."""
        self.answered[status] = self.answered.get(status, 0) + 1

    def _inform(self, found: Route) -> Reply:
        catalog, name, version = self.catalog, found.name, found.version
        if found.kind == "server":
            return json_reply(catalog.server_metadata())
        if found.kind == "live":
            return json_reply({"live": True})
        if found.kind == "ready":
            return json_reply({"ready": catalog.ready}, 200 if catalog.ready else 503)
        if found.kind == "metrics":
            return metrics.exposition(catalog.every_lane(), self.answered, ready=catalog.ready)
        if found.kind == "model":
            return json_reply(catalog.model_metadata(name, version))
        if found.kind == "model-ready":
            ready = catalog.model_ready(name, version)
            return json_reply({"name": name, "ready": ready}, 200 if ready else 503)
        if found.kind == "config":
            return json_reply(catalog.model_config(name, version))
        if found.kind == "stats":
            return json_reply(catalog.statistics(name, version))
        if found.kind == "memory-status":
            return json_reply(catalog.shared_memory().status(name))
        if found.kind == "cuda-status" and not name:
            return json_reply([])  # none can be registered
        raise _unsupported()

    def _change(self, found: Route, head: Head, body: memoryview) -> Reply:
        name = found.name
        if found.kind == "index":
            return json_reply(self.library.index(ready=_read(head, body, _Index).ready))
        if found.kind == "memory-register":
            regions = self.catalog.shared_memory()
            region = _read(head, body, _Region)
            regions.register(name, region.key, region.offset, region.byte_size)
            return EMPTY
        if found.kind == "memory-unregister":
            self.catalog.shared_memory().unregister(name)
            return EMPTY
        if found.kind == "cuda-unregister":
            return EMPTY  # none can be registered
        raise _unsupported()

    def _job(self, found: Route, head: Head, body: memoryview) -> Job:
        library, name = self.library, found.name
        parameters = _read(head, body, _Control).parameters or {}
        if found.kind == "load":
            library.check(name, parameters, ())
            return Job(head, lambda: library.load(name))
        library.check(name, parameters, ("unload_dependents",))
        return Job(head, lambda: library.unload(name))


def _check_length(head: Head) -> None:
    if head.length is None and not head.chunked:
        raise HttpError(411, "an inference request needs a Content-Length or a chunked body")


def _read(head: Head, body: memoryview, kind: type[Message]) -> Message:
    """Read the small JSON body of a control request; an empty one is `{}`."""
    if len(body) > _CONTROL_BYTES:
        raise HttpError(413, f"the request body is larger than {_CONTROL_BYTES} bytes")
    if head.encoding:
        body = decompress(body, head.encoding, _CONTROL_BYTES)
    try:
        return msgspec.json.decode(bytes(body) or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise HttpError(400, f"failed to parse the request JSON: {error}") from error


def _unsupported() -> HttpError:
    return HttpError(501, "this extension of the protocol is not supported by this server")
