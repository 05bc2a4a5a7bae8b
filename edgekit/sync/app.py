"""The sync server's HTTP application: routes, limits, and how a no becomes a reply."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import msgspec
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit import __version__
from edgekit.sync import intake, pages, readings, store
from edgekit.sync.database import Database
from edgekit.sync.problems import STATUS, ProblemError
from edgekit.sync.wire import (
    ENROLL_PATH,
    MAX_BODY_BYTES,
    REPORTS_PATH,
    Enrolment,
    EnrolmentReply,
    Problem,
    Reports,
    ReportsReply,
)

__all__ = ["create_app", "is_loopback"]

#: Requests that may wait for the one writer; beyond that, 503. Fewer than the 40 threads that serve, so that
#: reading goes on.
MAX_WAITING = 24

_DeviceId = Annotated[str, Path(max_length=64)]

_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class _Server:
    """What the routes share: the database, the clock and the bound on waiting writers."""

    def __init__(self, database: Database, clock: Callable[[], float], body_s: float) -> None:
        self.database = database
        self.clock = clock
        self.body_s = body_s
        self._room = threading.BoundedSemaphore(MAX_WAITING)

    @contextmanager
    def writing(self) -> Iterator[Any]:
        """Give a write transaction, or say 503 at once when too many wait."""
        if not self._room.acquire(blocking=False):
            raise ProblemError("storage", "too many reports are waiting to be stored", retry_after_s=2)
        try:
            with self.database.write() as connection:
                yield connection
        finally:
            self._room.release()

    def enrol(self, headers: intake.SignedHeaders, encoding: str, body: bytes) -> EnrolmentReply:
        """Answer one enrolment."""
        now = self.clock()
        ask = intake.decode_body(intake.inflate(body, encoding), Enrolment)
        public_key = _public_key(ask.public_key)
        intake.check_signature(public_key, headers, "POST", ENROLL_PATH, body)
        intake.check_clock(headers, now)
        with self.database.read() as connection:  # who has no token does not get to take the writer
            store.check_token(connection, ask.token, public_key, now)
        with self.writing() as connection:
            device, name = store.enrol(connection, ask, public_key, now)
        return EnrolmentReply(device, name, now)

    def take_reports(self, headers: intake.SignedHeaders, encoding: str, body: bytes) -> ReportsReply:
        """Store one batch; the reply exists only after the commit."""
        now = self.clock()
        with self.database.read() as connection:
            public_key = store.public_key_of(connection, headers.device_id)
        intake.check_signature(public_key, headers, "POST", REPORTS_PATH, body)
        intake.check_clock(headers, now)
        reports = intake.decode_body(intake.inflate(body, encoding), Reports)
        judged = intake.judge(reports, now)
        with self.writing() as connection:
            stored = store.store_reports(connection, headers, reports, judged, now)
        return ReportsReply(tuple((w.boot, w.seq) for w in stored.windows), stored.refused, now)


def _public_key(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProblemError("bad-request", "public_key is not base64") from error
    if len(raw) != 32:
        raise ProblemError("bad-request", f"public_key has {len(raw)} bytes, an Ed25519 key has 32")
    return raw


def create_app(
    database: Database,
    *,
    clock: Callable[[], float] = time.time,
    read_from_anywhere: bool = False,
    body_s: float = 30.0,
) -> FastAPI:
    """Return the server's application.

    Args:
        database: Open and migrated; the caller closes it.
        clock: Unix time in seconds.
        read_from_anywhere: Let every address read. Without it only this machine may, since reading asks for
            no token yet; a proxy in front must then decide who may read.
        body_s: A body must have arrived after so many seconds.
    """
    # FastAPI's own documentation pages load scripts from elsewhere; the description itself stays
    app = FastAPI(
        title="EdgeKit sync server",
        version=__version__,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    server = _Server(database, clock, body_s)
    app.add_middleware(_Guard, read_from_anywhere=read_from_anywhere)
    _add_problem_handlers(app, clock)
    _add_device_routes(app, server)
    _add_reading_routes(app, server)
    pages.add_pages(app, database, clock)
    app.mount("/static", StaticFiles(packages=[("edgekit.sync", "static")]), name="static")
    return app


class _Guard:
    """Around every request: who may read, and the headers that every reply carries."""

    def __init__(self, app: ASGIApp, *, read_from_anywhere: bool) -> None:
        self._app, self._read_from_anywhere = app, read_from_anywhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_SECURITY_HEADERS)
                headers.setdefault(
                    "Cache-Control", "no-store" if scope["path"].startswith("/api/") else "no-cache"
                )
            await send(message)

        reads = scope["method"] != "POST"
        if reads and not self._read_from_anywhere and not _is_local(Request(scope)):
            detail = "only this machine may read; use an SSH tunnel, or a proxy and --behind-proxy"
            await _problem_reply("forbidden", detail)(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)


def _is_local(request: Request) -> bool:
    """Tell whether this machine asks, by its address and by a name that no foreign site can point here."""
    host = request.url.hostname or ""
    return (
        request.client is not None
        and is_loopback(request.client.host)
        and (host == "localhost" or is_loopback(host))
    )


def is_loopback(host: str) -> bool:
    """Tell whether `host` is an address of the loopback interface (a name is not)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _problem_reply(code: Any, detail: str, *, now: float = 0.0, retry_after_s: int | None = None) -> Response:
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return _json(Problem(code, detail, now), STATUS[code], headers)


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def _add_problem_handlers(app: FastAPI, clock: Callable[[], float]) -> None:
    @app.exception_handler(ProblemError)
    async def on_problem(_request: Request, error: ProblemError) -> Response:
        return _problem_reply(error.code, error.detail, now=clock(), retry_after_s=error.retry_after_s)

    @app.exception_handler(OperationalError)
    @app.exception_handler(PoolTimeoutError)
    async def on_storage(_request: Request, error: Exception) -> Response:
        detail = f"the database does not answer now: {getattr(error, 'orig', error)}"
        return _problem_reply("storage", detail, now=clock(), retry_after_s=5)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _problem_reply("bad-request", f"{first['loc'][-1]}: {first['msg']}", now=clock())

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return _problem_reply("not-found", f"there is no {request.url.path}", now=clock())
        reply = _problem_reply("bad-request", str(error.detail), now=clock())
        reply.status_code = error.status_code
        return reply


async def _read_body(request: Request, body_s: float) -> bytes:
    """Return the body, of at most `MAX_BODY_BYTES`, arrived within `body_s` seconds."""
    if int(request.headers.get("content-length", "0")) > MAX_BODY_BYTES:
        raise ProblemError("too-large", f"a body may have at most {MAX_BODY_BYTES} bytes")
    try:
        return await asyncio.wait_for(_collect(request), body_s)
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise ProblemError("timeout", f"the body did not arrive within {body_s:g} s") from error


async def _collect(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ProblemError("too-large", f"a body may have at most {MAX_BODY_BYTES} bytes")
    return bytes(body)


async def _serve_signed(
    request: Request, body_s: float, answer: Callable[[intake.SignedHeaders, str, bytes], object]
) -> Response:
    headers = intake.read_headers(request.headers)
    body = await _read_body(request, body_s)
    encoding = request.headers.get("content-encoding", "").lower()
    return _json(await run_in_threadpool(answer, headers, encoding, body))


def _add_device_routes(app: FastAPI, server: _Server) -> None:
    @app.post(ENROLL_PATH, tags=["device"], openapi_extra=_body_of(Enrolment, EnrolmentReply))
    async def enroll(request: Request) -> Response:
        """Enrol a device by a one-time token; signed with the key that it presents."""
        return await _serve_signed(request, server.body_s, server.enrol)

    @app.post(REPORTS_PATH, tags=["device"], openapi_extra=_body_of(Reports, ReportsReply))
    async def reports(request: Request) -> Response:
        """Store windows; what the reply acknowledges is durable."""
        return await _serve_signed(request, server.body_s, server.take_reports)


def _body_of(asked: type, answered: type) -> dict[str, Any]:
    """Describe a body that msgspec reads, for OpenAPI."""
    (ask, reply), components = msgspec.json.schema_components(
        [asked, answered], ref_template="#/components/schemas/{name}"
    )
    names = (ask["$ref"].rsplit("/", 1)[1], reply["$ref"].rsplit("/", 1)[1])
    inline = [_inlined(components[name], components) for name in names]
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": inline[0]}}},
        "responses": {"200": {"description": "Done", "content": {"application/json": {"schema": inline[1]}}}},
    }


def _inlined(schema: Any, components: dict[str, Any]) -> Any:
    """Return `schema` with every reference replaced by what it points to (there are no cycles)."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(components[schema["$ref"].rsplit("/", 1)[1]], components)
        return {key: _inlined(value, components) for key, value in schema.items()}
    return [_inlined(item, components) for item in schema] if isinstance(schema, list) else schema


def _add_reading_routes(app: FastAPI, server: _Server) -> None:
    database, clock = server.database, server.clock

    @app.get("/api/v1/health", tags=["operator"])
    def health() -> dict[str, str]:
        """Answer when the database answers."""
        with database.read():
            return {"status": "ok", "version": __version__}

    @app.get("/api/v1/devices", tags=["operator"])
    def list_devices() -> readings.DevicesReply:
        """Every device with the newest window of each of its models."""
        now = clock()
        with database.read() as connection:
            return readings.DevicesReply(now, readings.read_devices(connection, now))

    @app.get("/api/v1/devices/{device_id}", tags=["operator"])
    def show_device(device_id: _DeviceId) -> readings.DeviceReply:
        """One device."""
        with database.read() as connection:
            reply = readings.read_device(connection, device_id, clock())
        if reply is None:
            raise ProblemError("not-found", f"there is no device {device_id}")
        return reply

    @app.get("/api/v1/devices/{device_id}/windows", tags=["operator"])
    def list_windows(
        device_id: _DeviceId,
        model: Annotated[str | None, Query(max_length=200)] = None,
        before_unix_s: float | None = None,
        limit: Annotated[int, Query(ge=1, le=2000)] = 240,
    ) -> readings.WindowsReply:
        """The newest windows of a device, oldest first."""
        with database.read() as connection:
            found = readings.read_windows(
                connection, device_id, model=model, before_unix_s=before_unix_s, limit=limit
            )
        return readings.WindowsReply(clock(), found)

    @app.get("/api/v1/events", tags=["operator"])
    def list_events(
        device: Annotated[str | None, Query(max_length=64)] = None,
        level: Literal["info", "warning", "critical"] | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> readings.EventsReply:
        """The newest events, newest first."""
        with database.read() as connection:
            found = readings.read_events(connection, device=device, level=level, limit=limit)
        return readings.EventsReply(clock(), found)
