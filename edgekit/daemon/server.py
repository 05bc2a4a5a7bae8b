"""The daemon: opens the sockets, loads the models, serves, and ends when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekit.daemon.application import Application
from edgekit.daemon.catalog import Catalog
from edgekit.daemon.connection import Connection, Rooms
from edgekit.daemon.http1 import HeadParser, best_head_parser, remembering
from edgekit.daemon.inbound import Limits
from edgekit.daemon.lane import Lane
from edgekit.daemon.library import Library, Offer
from edgekit.daemon.sharedmemory import Regions
from edgekit.daemon.systemd import notify, watchdog_period_s
from edgekit.errors import EdgeKitError, MachineError, UsageError

if TYPE_CHECKING:
    from edgekit.daemon.grpc_server import GrpcServer

__all__ = ["Daemon", "Listening", "Settings", "check_shared_memory", "new_event_loop", "parse_address"]

_log = logging.getLogger("edgekit.daemon")
_BACKLOG = 1024


class Settings(msgspec.Struct, frozen=True):
    """How to serve.

    Attributes:
        http: Host and port, port 0 for any; None for no TCP.
        grpc: Host and port, port 0 for any; None for no gRPC.
        socket: Path of the Unix socket; None for none.
        socket_mode: Its file mode.
        limits: What clients may ask.
        queue_limit: Calls that may wait for one model.
        shared_memory: Whether clients may hand over tensors in shared memory.
        repository_control: Whether clients may load and unload models.
        drain_s: Seconds to finish what is under way when told to end.
        linger_s: Seconds after the signal in which clients still learn that this server is not ready.
        check_s: Period of the check for slow clients.
        parse_head: Parser of request heads.
    """

    http: tuple[str, int] | None = ("127.0.0.1", 8080)
    grpc: tuple[str, int] | None = None
    socket: Path | None = None
    socket_mode: int = 0o660
    limits: Limits = msgspec.field(default_factory=Limits)
    queue_limit: int = 32
    shared_memory: bool = False
    repository_control: bool = False
    drain_s: float = 10.0
    linger_s: float = 0.5
    check_s: float = 1.0
    parse_head: HeadParser = msgspec.field(default_factory=best_head_parser)


class Listening(msgspec.Struct, frozen=True):
    """Where the daemon really listens."""

    http: tuple[str, int] | None
    socket: Path | None
    grpc: tuple[str, int] | None = None


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop where it is installed, else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def parse_address(text: str) -> tuple[str, int]:
    """Read `HOST:PORT`; an IPv6 host stands in brackets.

    Raises:
        UsageError: It is neither.
    """
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError("not an address to listen on", got=repr(text), expected="HOST:PORT")
    return host, int(port)


def check_shared_memory(settings: Settings) -> None:
    """Refuse to offer shared memory to clients of other machines, who have none with this one.

    Raises:
        UsageError: It is on, and an address is not on the loopback.
    """
    for option, address in (("--http", settings.http), ("--grpc", settings.grpc)):
        if settings.shared_memory and address is not None and not _is_loopback(address[0]):
            raise UsageError(
                "--shared-memory is for clients on this machine",
                got=f"{option} {address[0]}",
                expected="an address such as 127.0.0.1",
                hint="Listen on the loopback, or on a Unix socket with --http off.",
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Daemon:
    """One process that serves models until it is told to end.

    Args:
        offers: What to serve.
        settings: How.
        announce: Called in the event loop with where it listens, then with every model that is ready.
        shelf: Returns what else may be loaded when a client asks; None for the offers.
    """

    def __init__(
        self,
        offers: Sequence[Offer],
        settings: Settings,
        announce: Callable[[Listening | Lane], None] = lambda _: None,
        shelf: Callable[[], Sequence[Offer]] | None = None,
    ) -> None:
        regions = Regions(settings.limits.body_bytes) if settings.shared_memory else None
        self.catalog = Catalog(frozenset(offer.name for offer in offers), regions)
        self.library = Library(
            self.catalog,
            self._make_lane,
            shelf or (lambda: offers),
            open_to_clients=settings.repository_control,
        )
        self.application = Application(self.catalog, self.library)
        self._offers, self._settings, self._announce = offers, settings, announce
        self._connections: set[Connection] = set()
        self._grpc: GrpcServer | None = None
        self._parse_head = remembering(settings.parse_head)
        self._rooms = Rooms(settings.limits.room(), settings.limits.room())
        self._stop: asyncio.Event
        self._stopped_by = 0
        self._signals = 0

    def run(self) -> int:
        """Serve on an event loop of its own until SIGTERM or SIGINT; return the signal's number, or 0."""
        loop = new_event_loop()
        try:
            return loop.run_until_complete(self.serve(handle_signals=True))
        finally:
            loop.close()

    def stop(self, signal_number: int = 0) -> None:
        """Begin to end; called in the event loop. A second call does not wait for what is under way."""
        self._signals += 1
        self._stopped_by = self._stopped_by or signal_number
        self._stop.set()

    async def serve(self, *, handle_signals: bool = False) -> int:
        """Serve until `stop`.

        Raises:
            EdgeKitError: A socket cannot be opened, or a model cannot be loaded.
        """
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        if handle_signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop, number)
        servers, listening = await self._listen(loop)
        background = [asyncio.ensure_future(self._check_connections()), asyncio.ensure_future(_watchdog())]
        try:
            self._announce(listening)
            if await self._load(loop):
                notify("READY=1")
                await self._stop.wait()
            await self._drain(servers)
        finally:
            await self._end(servers, background, listening)
        return self._stopped_by

    async def _listen(self, loop: asyncio.AbstractEventLoop) -> tuple[list[asyncio.Server], Listening]:
        settings = self._settings
        check_shared_memory(settings)
        opened: list[socket.socket] = []
        try:
            if settings.http is not None:
                opened.append(_open_tcp(*settings.http))
            if settings.socket is not None:
                opened.append(_open_unix(settings.socket, settings.socket_mode))
        except BaseException:
            for listener in opened:
                listener.close()
            raise
        bound = opened[0].getsockname()[:2] if settings.http is not None else None
        grpc = self._open_grpc(opened)
        servers: list[asyncio.Server] = []
        for listener in opened:
            create = loop.create_unix_server if listener.family == socket.AF_UNIX else loop.create_server
            servers.append(await create(self._connect, sock=listener, backlog=_BACKLOG))
        return servers, Listening(bound, settings.socket, grpc)

    def _open_grpc(self, opened: Sequence[socket.socket]) -> tuple[str, int] | None:
        settings = self._settings
        if settings.grpc is None:
            return None
        from edgekit.daemon.grpc_server import GrpcServer, check_installed

        try:
            check_installed()
            self._grpc = GrpcServer(self.catalog, self.library, settings.limits, settings.grpc)
            return self._grpc.start()
        except EdgeKitError:
            for listener in opened:
                listener.close()
            raise

    def _connect(self) -> Connection:
        return Connection(
            self.application, self._parse_head, self._settings.limits, self._connections, self._rooms
        )

    async def _load(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Load the models one after another, off the loop; False when told to end meanwhile."""
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            for offer in self._offers:
                loading = asyncio.ensure_future(_in_thread(loop, lambda offer=offer: self._make_lane(offer)))  # type: ignore[misc]
                await asyncio.wait({loading, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not loading.done():
                    loading.cancel()
                    return False
                lane = loading.result()
                self.catalog.add(lane)
                self.library.remember(lane, offer)
                self._announce(lane)
            return not self._stop.is_set()
        finally:
            stopped.cancel()

    def _make_lane(self, offer: Offer) -> Lane:
        model = offer.load()
        settings = self._settings
        return Lane(
            model,
            queue_limit=settings.queue_limit,
            body_limit=settings.limits.body_bytes,
            regions=self.catalog.regions,
        )

    async def _drain(self, servers: Sequence[asyncio.Server]) -> None:
        """Be not ready at once, let clients notice, take no new ones, and finish what is under way."""
        self.catalog.draining = True
        notify("STOPPING=1")
        deadline_s = time.monotonic() + self._settings.drain_s
        signals = self._signals
        linger_s = time.monotonic() + min(self._settings.linger_s, self._settings.drain_s)
        while time.monotonic() < linger_s and self._signals == signals and self._visited:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for server in servers:
            server.close()
        if self._grpc is not None:
            self._grpc.stop(max(0.0, deadline_s - time.monotonic()))
        while self._signals == signals:
            for connection in tuple(self._connections):
                connection.close_idle()
            if not self._visited:
                return
            if time.monotonic() > deadline_s:
                break
            await asyncio.sleep(0.02)
        _log.warning("%d connections were still busy and are closed", len(self._connections))

    @property
    def _visited(self) -> bool:
        """Tell whether clients may be there that want to learn that this server is not ready."""
        return bool(self._connections) or (self._grpc is not None and self._grpc.running)

    async def _end(
        self,
        servers: Sequence[asyncio.Server],
        background: Sequence[asyncio.Future[None]],
        listening: Listening,
    ) -> None:
        for server in servers:
            server.close()
        if self._grpc is not None:
            self._grpc.stop(0.0)
            self._grpc.join(1.0)
        for task in background:
            task.cancel()
        for connection in tuple(self._connections):
            connection.abort()
        await asyncio.gather(*background, return_exceptions=True)
        if listening.socket is not None:
            listening.socket.unlink(missing_ok=True)
        for lane in self.catalog.every_lane():
            lane.stop()

    async def _check_connections(self) -> None:
        while True:
            await asyncio.sleep(self._settings.check_s)
            now_s = time.monotonic()
            for connection in tuple(self._connections):
                connection.check(now_s)


async def _watchdog() -> None:
    """Tell systemd that the event loop goes round."""
    period_s = watchdog_period_s()
    while period_s is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(period_s)


async def _in_thread(loop: asyncio.AbstractEventLoop, work: Callable[[], Lane]) -> Lane:
    """Run `work` in a daemon thread: a model that hangs while loading must not keep the process from ending."""
    future: asyncio.Future[Lane] = loop.create_future()

    def settle(result: Lane | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  it is raised again where it is awaited
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await future


def _open_tcp(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
        )
    except OSError as error:
        raise MachineError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="Stop what listens there, or give another address with --http.",
        ) from error


def _open_unix(path: Path, mode: int) -> socket.socket:
    """Bind a Unix socket; one that a dead server left is replaced."""
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        listener.bind(str(path))
        path.chmod(mode)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise MachineError(
            f"cannot listen on {path}: {error.strerror or error}", hint="Give another path with --socket."
        ) from error
    return listener


def _clear(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(kind):
        raise UsageError(
            f"{path} is there and is no socket", hint="Remove it, or give another path with --socket."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise MachineError(f"cannot tell who listens on {path}: {error}") from error
            path.unlink(missing_ok=True)
            return
    raise MachineError(f"another server listens on {path}", hint="Stop it, or give another --socket.")
