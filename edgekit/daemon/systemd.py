"""Telling systemd how it goes (sd_notify): a datagram to the socket that it names."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

__all__ = ["notify", "watchdog_period_s"]


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send a state such as `READY=1`; return whether anybody listens."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(state.encode(), address)
        except OSError:
            return False
    return True


def watchdog_period_s(environ: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """Return how often to send `WATCHDOG=1`: half of what systemd allows; None when it does not ask."""
    micros = environ.get("WATCHDOG_USEC", "")
    for_whom = environ.get("WATCHDOG_PID", "")
    if not micros.isdecimal() or int(micros) == 0:
        return None
    if for_whom and for_whom != str(os.getpid() if pid is None else pid):
        return None
    return int(micros) / 2e6
