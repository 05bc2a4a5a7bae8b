"""The routes: a request in, a `Reply` or a `Call` of a model out. No sockets here."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple
from urllib.parse import unquote

from edgekit import __version__
from edgekit.daemon import metrics
from edgekit.daemon.http1 import Head, HttpError, Reply, json_reply
from edgekit.daemon.lane import Call, Lane

__all__ = ["EXTENSIONS", "Application", "Route", "route"]

#: What beyond the protocol's core is spoken; a client decides by this list.
EXTENSIONS = ("binary_tensor_data",)

_MODEL = re.compile(
    r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[0-9]+))?(?:/(?P<verb>ready|infer))?"
)
_FIXED = {
    "/v2": "server",
    "/v2/": "server",
    "/v2/health/live": "live",
    "/v2/health/ready": "ready",
    "/metrics": "metrics",
}
_READ = ("GET", "HEAD")


class Route(NamedTuple):
    """Where a request goes: `server`, `live`, `ready`, `metrics`, `model`, `model-ready` or `infer`."""

    kind: str
    model: str = ""
    version: str = ""


@functools.lru_cache(256)
def route(method: str, target: str) -> Route:
    """Find the route of a request line.

    Raises:
        HttpError: 404, there is nothing there; 405, not with this method.
    """
    path = target.partition("?")[0]
    found = _find(path)
    if found is None:
        raise HttpError(404, "Not Found")
    allowed = ("POST",) if found.kind == "infer" else _READ
    if method not in allowed:
        raise HttpError(
            405, f"{method} is not allowed here: expected {allowed[0]}", headers={"Allow": ", ".join(allowed)}
        )
    return found


def _find(path: str) -> Route | None:
    if path in _FIXED:
        return Route(_FIXED[path])
    matched = _MODEL.fullmatch(path)
    if matched is None:
        return None
    kind = {None: "model", "ready": "model-ready", "infer": "infer"}[matched["verb"]]
    return Route(kind, unquote(matched["model"]), matched["version"] or "")


class Application:
    """What is served, and the daemon's state of readiness.

    Args:
        expected: Names of the models that are still to be loaded; the daemon is not ready before they are.
    """

    def __init__(self, expected: frozenset[str] = frozenset()) -> None:
        self.lanes: dict[str, dict[int, Lane]] = {}
        self._newest: dict[str, Lane] = {}
        self.expected = expected
        self.draining = False
        self.answered: dict[int, int] = {}

    def add(self, lane: Lane) -> None:
        """Serve a model that has passed its self-test."""
        versions = self.lanes.setdefault(lane.model.name, {})
        versions[lane.model.version] = lane
        self._newest[lane.model.name] = versions[max(versions)]

    def every_lane(self) -> list[Lane]:
        """Return the lanes of every model and version."""
        return [lane for versions in self.lanes.values() for lane in versions.values()]

    @property
    def ready(self) -> bool:
        """Tell whether every expected model is served and no end is in sight."""
        return not self.draining and self.expected <= self.lanes.keys()

    def admit(self, head: Head) -> None:
        """Refuse, before the body is there, what would be refused with it.

        Raises:
            HttpError: 404, 405, 411 or 503.
        """
        found = route(head.method, head.target)
        if found.kind == "infer":
            if head.length is None and not head.chunked:
                raise HttpError(411, "an inference request needs a Content-Length or a chunked body")
            self._lane(found)

    def respond(self, head: Head, body: memoryview) -> Reply | Call:
        """Answer a request, or return the call that answers it.

        Raises:
            HttpError: What the client did wrong, or why the daemon cannot.
        """
        found = route(head.method, head.target)
        if found.kind == "infer":
            if head.length is None and not head.chunked:
                raise HttpError(411, "an inference request needs a Content-Length or a chunked body")
            return Call(self._lane(found), head, body)
        return self._inform(found)

    def count(self, status: int) -> None:
        """Count an answer that no model's lane counts."""
        self.answered[status] = self.answered.get(status, 0) + 1

    def _inform(self, found: Route) -> Reply:
        if found.kind == "server":
            return json_reply({"name": "edgekit", "version": __version__, "extensions": EXTENSIONS})
        if found.kind == "live":
            return json_reply({"live": True})
        if found.kind == "ready":
            return json_reply({"ready": self.ready}, 200 if self.ready else 503)
        if found.kind == "metrics":
            return metrics.exposition(self.every_lane(), self.answered, ready=self.ready)
        if found.kind == "model-ready":
            return self._model_ready(found)
        return self._model_metadata(found)

    def _model_ready(self, found: Route) -> Reply:
        ready = not self.draining and not self._is_loading(found)
        if ready:
            self._lane(found)
        return json_reply({"name": found.model, "ready": ready}, 200 if ready else 503)

    def _model_metadata(self, found: Route) -> Reply:
        lane = self._lane(found)
        versions = sorted(self.lanes[found.model])
        return json_reply({**lane.metadata(), "versions": [str(version) for version in versions]})

    def _is_loading(self, found: Route) -> bool:
        return found.model in self.expected and found.model not in self.lanes

    def _lane(self, found: Route) -> Lane:
        if not found.version:
            newest = self._newest.get(found.model)
            if newest is not None:
                return newest
        if self._is_loading(found):
            raise HttpError(503, f"model {found.model!r} is loading", headers={"Retry-After": "1"})
        versions = self.lanes.get(found.model)
        if versions is None:
            known = ", ".join(sorted(self.lanes)) or "none"
            raise HttpError(404, f"model {found.model!r} is not found: this server has {known}")
        version = int(found.version) if len(found.version) < 19 else None
        if version not in versions:
            known = ", ".join(str(known) for known in sorted(versions))
            raise HttpError(
                404, f"model {found.model!r} has no version {found.version[:20]}: this server has {known}"
            )
        return versions[version]
