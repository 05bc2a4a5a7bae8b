"""Where a device is: `ssh://user@host:port`, in the words of the system's ssh."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import msgspec

from edgekit.errors import UsageError

__all__ = ["Address", "parse_address"]

#: A name, an alias of ~/.ssh/config, an IPv4 or IPv6 address with its zone. None of them begins like an option.
_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]{0,252}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,63}")


class Address(msgspec.Struct, frozen=True):
    """A device, as ssh finds it.

    Attributes:
        host: Name, alias or address.
        user: None for what the ssh configuration says.
        port: None for what the ssh configuration says.
    """

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        """Return it as an URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{f'{self.user}@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"

    def words(self) -> list[str]:
        """Return ssh's arguments for it."""
        user = ["-l", self.user] if self.user else []
        port = ["-p", str(self.port)] if self.port else []
        return [*user, *port, "--", self.host]

    def by_hand(self) -> str:
        """Return the command that a person would type."""
        return (
            f"ssh {f'-p {self.port} ' if self.port else ''}{f'{self.user}@' if self.user else ''}{self.host}"
        )


def parse_address(text: str) -> Address:
    """Read an address.

    Raises:
        UsageError: It is no ssh address, or holds more than user, host and port.

    >>> parse_address("ssh://pi@raspberry.local:2222")
    Address(host='raspberry.local', user='pi', port=2222)
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _bad(text) from error
    user, _, host = parts.netloc.rpartition("@")
    host = host.rpartition(":")[0] if port is not None or host.endswith(":") else host
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    rest = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme != "ssh" or rest or not _HOST.fullmatch(host) or (user and not _USER.fullmatch(user)):
        raise _bad(text)
    return Address(host, user or None, port)


def _bad(text: str) -> UsageError:
    return UsageError(
        "no address of a device",
        got=repr(text),
        expected="ssh://[USER@]HOST[:PORT]",
        hint="Keys and everything else come from your ssh configuration.",
    )
