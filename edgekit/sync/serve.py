"""Running the server: where it may listen, and a clean end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from edgekit.errors import MachineError, UsageError
from edgekit.sync.app import create_app, is_loopback
from edgekit.sync.database import open_database

__all__ = ["Listen", "check_listen", "parse_listen", "run_server"]


@dataclass(frozen=True)
class Listen:
    """Where to listen, and how it is protected.

    Attributes:
        behind_proxy: A proxy in front ends TLS and decides who may read.
    """

    host: str
    port: int
    cert: Path | None = None
    key: Path | None = None
    behind_proxy: bool = False

    @property
    def url(self) -> str:
        """The URL of this address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.cert else 'http'}://{host}:{self.port}"


def parse_listen(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT` or `[IPV6]:PORT`; port 0 takes a free one.

    >>> parse_listen("127.0.0.1:8090"), parse_listen("[::1]:0")
    (('127.0.0.1', 8090), ('::1', 0))
    """
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise UsageError("--listen is not an address", got=repr(text), expected="HOST:PORT")
    return host, int(port)


def check_listen(listen: Listen) -> None:
    """Refuse an address that would put reports or the operator's pages on the network unprotected.

    Raises:
        UsageError: Beyond loopback without TLS and without a proxy; or half a certificate.
    """
    if (listen.cert is None) != (listen.key is None):
        raise UsageError("TLS needs both --tls-cert and --tls-key")
    local = is_loopback(listen.host) or listen.host == "localhost"
    if not local and listen.cert is None and not listen.behind_proxy:
        raise UsageError(
            f"{listen.host} is beyond this machine, and there is no TLS",
            hint="Give --tls-cert and --tls-key, or --behind-proxy when a proxy does TLS and guards the pages.",
        )


def run_server(url: str, listen: Listen, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are finished.

    Args:
        url: The database's URL.
        listen: Checked here.
        announce: Told the server's URL when connections are accepted.

    Raises:
        MachineError: The address is taken or not ours.
    """
    check_listen(listen)
    database = open_database(url)
    try:
        sock = _bind(listen)
        bound = Listen(listen.host, sock.getsockname()[1], listen.cert, listen.key, listen.behind_proxy)
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(database, read_from_anywhere=listen.behind_proxy),
                ssl_certfile=listen.cert,
                ssl_keyfile=listen.key,
                log_level="warning",
                access_log=False,
                # X-Forwarded-For is anybody's word; who may read is decided by the real peer
                proxy_headers=False,
                server_header=False,
                limit_concurrency=1000,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=10,
            )
        )

        def finish(_signal: int, _frame: FrameType | None) -> None:
            server.should_exit = True

        # before uvicorn has its own handler a SIGTERM must count too; after it, uvicorn raises it once more,
        # and an orderly end must not look like a crash
        signal.signal(signal.SIGTERM, finish)
        announce(bound.url)
        server.run(sockets=[sock])
    finally:
        database.close()


def _bind(listen: Listen) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
    except OSError as error:
        raise MachineError(
            f"cannot listen on {listen.host}:{listen.port}",
            got=error.strerror,
            hint="Is another server running? --listen takes another address.",
        ) from error
    return sock
