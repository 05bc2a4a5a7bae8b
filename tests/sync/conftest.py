"""Fixtures of the sync server's tests; what they import is imported late, for lanes without the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.sync.fleet import Device, ServerProcess


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests that do not kill it; each test has a device of its own."""
    from tests.sync.fleet import ServerProcess

    with ServerProcess(tmp_path_factory.mktemp("sync") / "sync.sqlite") as running:
        yield running


@pytest.fixture
def device(server: ServerProcess) -> Iterator[Device]:
    from tests.sync.fleet import Device

    enrolled = Device(server).enrol()
    yield enrolled
    enrolled.pool.clear()
