"""Loading and unloading while the daemon runs: the protocol's model repository, over the installed bundles."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from edgekit.daemon import memory
from edgekit.daemon.catalog import Catalog
from edgekit.daemon.http1 import HttpError
from edgekit.daemon.lane import Lane, Servable
from edgekit.errors import EdgeKitError

__all__ = ["Library", "Offer"]

_log = logging.getLogger("edgekit.daemon")

#: Loads and unloads that may wait; each takes seconds.
_MOST_JOBS = 8
#: A request that has found a lane is in its queue after microseconds.
_GRACE_S = 0.05
#: Time for what is queued when a model is unloaded.
_PATIENCE_S = 60.0


class Offer(msgspec.Struct, frozen=True):
    """A model that may be served.

    Attributes:
        name: Its name.
        load: Returns it: loaded, warm, and past its self-test.
        version: Its version; 0 where only loading tells.
        reason: Why it is not served, as far as is known; empty where it was not asked for.
        unload: Called when it is served no longer, before it is closed.
    """

    name: str
    load: Callable[[], Servable]
    version: int = 0
    unload: Callable[[Servable], None] = lambda _: None
    reason: str = ""


class Library:
    """What may be loaded: all that is installed. One thread loads and unloads, one thing at a time.

    Args:
        catalog: What is served.
        make_lane: Loads an offer and returns its lane.
        shelf: Returns what is installed now; of several versions of a name, first the one to load.
        open_to_clients: Whether clients may load and unload.
    """

    def __init__(
        self,
        catalog: Catalog,
        make_lane: Callable[[Offer], Lane],
        shelf: Callable[[], Sequence[Offer]],
        *,
        open_to_clients: bool,
    ) -> None:
        self._catalog, self._make_lane, self._shelf = catalog, make_lane, shelf
        self._open = open_to_clients
        self._states: dict[
            tuple[str, int], tuple[str, str]
        ] = {}  # by name and version, of what is not simply served
        self._unloaders: dict[Lane, Callable[[Servable], None]] = {}
        self._jobs: queue.Queue[Callable[[], None]] = queue.Queue(_MOST_JOBS)
        self._thread: threading.Thread | None = None
        self._gate = threading.Lock()

    def remember(self, lane: Lane, offer: Offer) -> None:
        """Take note of what ends with a lane."""
        self._unloaders[lane] = offer.unload

    def index(self, *, ready: bool = False) -> list[dict[str, str]]:
        """Return the protocol's repository index: what is served, and what else is installed.

        Args:
            ready: Only what is served.
        """
        entries = [self._served(lane) for lane in self._catalog.every_lane()]
        if not ready:
            there = {(entry["name"], entry["version"]) for entry in entries}
            entries += [self._shelved(offer) for offer in self._shelf() if not _is_in(offer, there)]
        return sorted(entries, key=lambda entry: (entry["name"], entry.get("version", "")))

    def check(self, name: str, parameters: Mapping[str, object], known: Sequence[str]) -> None:
        """Refuse to load or unload where clients may not, or with parameters that would be ignored.

        Raises:
            HttpError: 403, 400 or 503.
        """
        if not self._open:
            raise HttpError(
                403, "clients may not load and unload models here: `serve` needs --repository-control"
            )
        if not name.strip():
            raise HttpError(400, "a model has a name")
        unknown = sorted(set(parameters) - set(known))
        if unknown:
            raise HttpError(400, f"the parameter {unknown[0]!r} is not supported by this server")
        if self._catalog.draining or self._catalog.expected - self._catalog.lanes.keys():
            raise HttpError(503, "this server is starting or ending", headers={"Retry-After": "1"})

    def submit(self, work: Callable[[], None], answer: Callable[[HttpError | None], None]) -> None:
        """Have `work` done after what was asked before; `answer` is called from another thread with what it raised.

        Raises:
            HttpError: 503, too much is waiting.
        """

        def job() -> None:
            failure: HttpError | None = None
            try:
                work()
            except HttpError as error:
                failure = error
            except Exception as error:  # noqa: BLE001  a bug of ours: this request fails, the thread lives
                _log.exception("loading or unloading failed")
                failure = HttpError(500, f"internal error: {error}")
            answer(failure)

        with self._gate:
            try:
                self._jobs.put_nowait(job)
            except queue.Full as error:
                raise HttpError(
                    503, "too many models are being loaded and unloaded", headers={"Retry-After": "1"}
                ) from error
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="library", daemon=True)
                self._thread.start()

    def load(self, name: str) -> None:
        """Load the version of a name that the shelf has first; what is served goes on until that is ready.

        Raises:
            HttpError: 404, nothing of that name is installed; 400, it did not load, and the old one stays.
        """
        shelf = self._shelf()
        offer = next((offer for offer in shelf if offer.name == name), None)
        there = {(offer.name, offer.version) for offer in shelf}
        self._states = {key: state for key, state in self._states.items() if key in there}
        if offer is None:
            raise HttpError(404, f"model {name!r} is not found: no bundle of that name is installed")
        served = self._catalog.lanes.get(name, {})
        if len(served) == 1 and offer.version in served:
            return
        key = (name, offer.version)
        self._states[key] = ("LOADING", "")
        try:
            lane = self._make_lane(offer)
        except EdgeKitError as error:
            _log.error("model %s: %s", name, error)
            self._states[key] = ("UNAVAILABLE", str(error))
            raise HttpError(400, f"model {name!r} did not load: {error}") from error
        except BaseException:
            self._states[key] = ("UNAVAILABLE", "internal error")
            raise
        self.remember(lane, offer)
        before = self._catalog.replace(name, lane)
        self._states.pop(key, None)
        _log.info("model %s version %s is loaded", name, lane.signature.version)
        self._retire(before)

    def unload(self, name: str) -> None:
        """Serve a name no longer; nothing to do where it is not served. Returns once the model is closed."""
        before = self._catalog.replace(name, None)
        keys = [(name, lane.model.version) for lane in before]
        if not keys:
            return
        self._states.update(dict.fromkeys(keys, ("UNLOADING", "")))
        self._retire(before)
        self._states.update(dict.fromkeys(keys, ("UNAVAILABLE", "unloaded")))
        _log.info("model %s is unloaded", name)

    def _retire(self, lanes: Sequence[Lane]) -> None:
        if lanes:
            time.sleep(_GRACE_S)
        for lane in lanes:
            unload = self._unloaders.pop(lane, None)
            if unload is not None:
                unload(lane.model)
            lane.stop(_PATIENCE_S)
        if lanes:
            memory.give_back()

    def _served(self, lane: Lane) -> dict[str, str]:
        return {"name": lane.signature.name, "version": lane.signature.version, "state": "READY"}

    def _shelved(self, offer: Offer) -> dict[str, str]:
        state, reason = self._states.get((offer.name, offer.version), ("UNAVAILABLE", "not loaded"))
        if state == "UNAVAILABLE":
            reason = offer.reason or reason
        if self._catalog.is_loading(offer.name):
            state, reason = "LOADING", ""
        entry = {"name": offer.name, "state": state}
        if offer.version:
            entry["version"] = str(offer.version)
        return {**entry, "reason": reason} if reason else entry

    def _work(self) -> None:
        while True:
            self._jobs.get()()


def _is_in(offer: Offer, there: set[tuple[str, str]]) -> bool:
    if not offer.version:
        return any(name == offer.name for name, _ in there)
    return (offer.name, str(offer.version)) in there
