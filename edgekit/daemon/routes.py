"""Which request line means what: data, and one function that reads it. No sockets here."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple
from urllib.parse import unquote

from edgekit.daemon.http1 import HttpError

__all__ = ["Route", "route"]

_READ = ("GET", "HEAD")
_POST = ("POST",)
_ANY = ("GET", "HEAD", "POST")

_MODEL = r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[0-9]+))?"
_REPOSITORY = r"/v2/repository(?:/[^/]+)?"
_SYSTEM = r"/v2/systemsharedmemory"
_CUDA = r"/v2/cudasharedmemory"
_REGION = r"(?:/region/(?P<name>[^/]+))"

#: Path, kind, methods. As Triton routes them; what it has and this server has not is `unsupported`, not unknown.
_TABLE = tuple(
    (re.compile(path), kind, methods)
    for path, kind, methods in (
        (rf"{_MODEL}/infer", "infer", _POST),
        (r"/v2/?", "server", _READ),
        (r"/v2/health/live", "live", _READ),
        (r"/v2/health/ready", "ready", _READ),
        (r"/metrics", "metrics", _READ),
        (r"/v2/models/stats", "stats", _READ),
        (_MODEL, "model", _READ),
        (rf"{_MODEL}/ready", "model-ready", _READ),
        (rf"{_MODEL}/config", "config", _READ),
        (rf"{_MODEL}/stats", "stats", _READ),
        (rf"{_REPOSITORY}/index", "index", _POST),
        (rf"{_REPOSITORY}/models/(?P<name>[^/]+)/load", "load", _POST),
        (rf"{_REPOSITORY}/models/(?P<name>[^/]+)/unload", "unload", _POST),
        (rf"{_SYSTEM}{_REGION}?/status", "memory-status", _READ),
        (rf"{_SYSTEM}{_REGION}/register", "memory-register", _POST),
        (rf"{_SYSTEM}{_REGION}?/unregister", "memory-unregister", _POST),
        (rf"{_CUDA}{_REGION}?/status", "cuda-status", _READ),
        (rf"{_CUDA}{_REGION}/register", "cuda-register", _POST),
        (rf"{_CUDA}{_REGION}?/unregister", "cuda-unregister", _POST),
        (r"/v2/logging", "unsupported", _ANY),
        (r"/v2(?:/models/(?P<name>[^/]+))?/trace/setting", "unsupported", _ANY),
        (rf"{_MODEL}/generate(?:_stream)?", "unsupported", _POST),
    )
)


class Route(NamedTuple):
    """Where a request goes.

    Attributes:
        kind: A word of the table.
        name: Of a model or of a region of shared memory; empty for all or none.
        version: Digits; empty for the newest.
    """

    kind: str
    name: str = ""
    version: str = ""


@functools.lru_cache(256)
def route(method: str, target: str) -> Route:
    """Find the route of a request line.

    Raises:
        HttpError: 404, there is nothing there; 405, not with this method.
    """
    path = target.partition("?")[0]
    for pattern, kind, methods in _TABLE:
        matched = pattern.fullmatch(path)
        if matched is None:
            continue
        if method not in methods:
            raise HttpError(
                405,
                f"{method} is not allowed here: expected {methods[0]}",
                headers={"Allow": ", ".join(methods)},
            )
        groups = matched.groupdict()
        return Route(kind, unquote(groups.get("name") or ""), groups.get("version") or "")
    raise HttpError(404, "Not Found")
