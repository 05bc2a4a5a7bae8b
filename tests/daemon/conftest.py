"""Every test of the daemon's surface runs with both head parsers and both event loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.serving import FAST, PLAIN, Flavour, Running


@pytest.fixture(params=[FAST, PLAIN], ids=lambda flavour: flavour.name)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    chosen: Flavour = request.param
    if chosen is FAST:
        pytest.importorskip("httptools")
        pytest.importorskip("uvloop")
    return chosen


@pytest.fixture
def serving(flavour: Flavour, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start daemons that end with the test."""
    with ExitStack() as stack:

        def start(*models: Any, wait_ready: bool = True, **settings: Any) -> Running:
            running = Running(models, flavour, tmp_path, **settings)
            stack.callback(running.stop)
            return running.start(wait_ready=wait_ready)

        yield start


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start daemons with gRPC, each with a client, that end with the test."""
    from tests.daemon.grpc_peer import Peer

    peers: list[Peer] = []

    def start(*models: Any, **settings: Any) -> Peer:
        defaults = {"grpc": ("127.0.0.1", 0), "linger_s": 0.0}
        running = Running(models, PLAIN, tmp_path, **{**defaults, **settings})
        peers.append(Peer(running.start()))
        return peers[-1]

    yield start
    for one in peers:
        one.close()
        one.running.stop()
