"""What is served: the models by name and version, and what the protocol tells of them. HTTP and gRPC ask here."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from edgekit import __version__
from edgekit.daemon.http1 import HttpError
from edgekit.daemon.lane import Lane
from edgekit.daemon.sharedmemory import Regions
from edgekit.daemon.signature import Port

__all__ = ["Catalog"]

#: What beyond the protocol's core is spoken; a client decides by this list.
_EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "statistics",
    "model_configuration",
    "model_repository",
)
#: A model whose tensors all begin with a free axis takes any batch; the protocol wants a number.
_ANY_BATCH = 1024
_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}


class Catalog:
    """The models that are served, and the daemon's state of readiness; read by any thread.

    Args:
        expected: Names of the models that are still to be loaded; the daemon is not ready before they are.
        regions: Shared memory; None where it is off.
    """

    def __init__(self, expected: frozenset[str] = frozenset(), regions: Regions | None = None) -> None:
        # never changed, always replaced: whoever reads has one state or the next
        self.lanes: Mapping[str, Mapping[int, Lane]] = {}
        self._newest: Mapping[str, Lane] = {}
        self.expected = expected
        self.regions = regions
        self.draining = False
        self._change = threading.Lock()

    def add(self, lane: Lane) -> None:
        """Serve a model that has passed its self-test."""
        with self._change:
            name = lane.model.name
            versions = {**self.lanes.get(name, {}), lane.model.version: lane}
            self._newest = {**self._newest, name: versions[max(versions)]}
            self.lanes = {**self.lanes, name: versions}

    def replace(self, name: str, lane: Lane | None) -> list[Lane]:
        """Serve this lane alone under the name, or nothing; return the lanes that are served no longer."""
        with self._change:
            before = [one for one in self.lanes.get(name, {}).values() if one is not lane]
            others = {other: versions for other, versions in self.lanes.items() if other != name}
            newest = {other: one for other, one in self._newest.items() if other != name}
            if lane is not None:
                others[name], newest[name] = {lane.model.version: lane}, lane
            else:
                self.expected -= {name}
            self._newest, self.lanes = newest, others
            return before

    def every_lane(self) -> list[Lane]:
        """Return the lanes of every model and version, by name and version."""
        return [lane for _, versions in sorted(self.lanes.items()) for _, lane in sorted(versions.items())]

    @property
    def ready(self) -> bool:
        """Tell whether every expected model is served and no end is in sight."""
        return not self.draining and self.expected <= self.lanes.keys()

    def is_loading(self, name: str) -> bool:
        """Tell whether the daemon's start has not come to that model yet."""
        return name in self.expected and name not in self.lanes

    def find(self, name: str, version: str = "") -> Lane:
        """Return the lane of a model, the newest version's if none is named.

        Raises:
            HttpError: 404, it is not served; 503, it is loading.
        """
        if not version:
            newest = self._newest.get(name)
            if newest is not None:
                return newest
        if self.is_loading(name):
            raise HttpError(503, f"model {name!r} is loading", headers={"Retry-After": "1"})
        versions = self.lanes.get(name)
        if versions is None:
            known = ", ".join(sorted(self.lanes)) or "none"
            raise HttpError(404, f"model {name!r} is not found: this server has {known}")
        number = int(version) if version.isascii() and version.isdecimal() and len(version) < 19 else 0
        if number not in versions:
            known = ", ".join(str(known) for known in sorted(versions))
            raise HttpError(404, f"model {name!r} has no version {version[:20]}: this server has {known}")
        return versions[number]

    def server_metadata(self) -> dict[str, object]:
        """Return the protocol's description of this server."""
        extensions = [*_EXTENSIONS, *(("system_shared_memory",) if self.regions else ())]
        return {"name": "edgekit", "version": __version__, "extensions": extensions}

    def model_ready(self, name: str, version: str = "") -> bool:
        """Tell whether a model answers.

        Raises:
            HttpError: 404, it is not there and will not be.
        """
        if self.draining or self.is_loading(name):
            return False
        self.find(name, version)
        return True

    def model_metadata(self, name: str, version: str = "") -> dict[str, object]:
        """Return the protocol's description of a model.

        Raises:
            HttpError: As in `find`.
        """
        lane = self.find(name, version)
        versions = sorted(self.lanes.get(name, ()))
        return {**lane.metadata(), "versions": [str(version) for version in versions]}

    def model_config(self, name: str, version: str = "") -> dict[str, object]:
        """Return the model's configuration, as far as the protocol's configuration says what is so here.

        Raises:
            HttpError: As in `find`.
        """
        lane = self.find(name, version)
        inputs, outputs = lane.signature.inputs.values(), lane.signature.outputs.values()
        batched = lane.signature.batched
        return {
            "name": name,
            "platform": lane.platform,
            "backend": lane.model.plan.runtime,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": _ANY_BATCH if batched else 0,
            "input": [{**_configured(port, batched=batched), "format": "FORMAT_NONE"} for port in inputs],
            "output": [_configured(port, batched=batched) for port in outputs],
            "instance_group": [{"name": name, "kind": "KIND_AUTO", "count": 1}],
            "model_transaction_policy": {"decoupled": False},
        }

    def statistics(self, name: str = "", version: str = "") -> dict[str, object]:
        """Return the statistics of a model, of all its versions if none is named, or of every model.

        Raises:
            HttpError: As in `find`.
        """
        if not name:
            lanes = self.every_lane()
        elif version:
            lanes = [self.find(name, version)]
        else:
            self.find(name)
            lanes = [lane for _, lane in sorted(self.lanes.get(name, {}).items())]
        return {
            "model_stats": [
                {"name": one.signature.name, "version": one.signature.version, **one.statistics.report()}
                for one in lanes
            ]
        }

    def shared_memory(self) -> Regions:
        """Return shared memory.

        Raises:
            HttpError: 501, it is off.
        """
        if self.regions is None:
            raise HttpError(
                501, "shared memory is not supported by this server: `serve` needs --shared-memory"
            )
        return self.regions


def _configured(port: Port, *, batched: bool) -> dict[str, object]:
    wire = port.kind.wire
    return {
        "name": port.spec.name,
        "data_type": _CONFIG_TYPES.get(wire, f"TYPE_{wire}"),
        "dims": list(port.spec.shape[1:] if batched else port.spec.shape),
    }
