"""From bundles to a daemon: install, load under one recorder, serve, put everything away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import cast

from edgekit.bundle import Bundle
from edgekit.daemon.lane import Lane, Servable
from edgekit.daemon.library import Offer
from edgekit.daemon.lifecycle import Lifecycle
from edgekit.daemon.repository import Installed, install, installed, tidy
from edgekit.daemon.server import Daemon, Listening, Settings
from edgekit.daemon.trial_child import LoadOptions
from edgekit.errors import EdgeKitError, UsageError
from edgekit.model import Model
from edgekit.monitor.outbox import Outbox
from edgekit.monitor.recorder import Recorder
from edgekit.state import StateFolder

__all__ = ["LoadOptions", "choose_installed", "serve_bundles"]


def serve_bundles(
    bundles: Sequence[Path],
    state: StateFolder,
    settings: Settings,
    options: LoadOptions,
    *,
    window_s: float,
    announce: Callable[[Listening | Lane], None],
    allowed_mib: float | None = None,
) -> int:
    """Install the bundles and serve them; without any, serve what is installed, as its slots say.

    Args:
        bundles: Folders or archives.
        state: The state folder.
        settings: How to serve.
        options: How to load.
        window_s: Length of a monitor window, in seconds.
        announce: Is told where the daemon listens, then every model that is ready.
        allowed_mib: What all models together may take, in MiB; None for what the machine has.

    Returns:
        The number of the signal that ended it.

    Raises:
        MachineError: Another daemon uses the state folder, or a socket cannot be opened.
        UsageError: There is nothing to serve.
        EdgeKitError: What installing or loading a bundle raises.
    """
    with ExitStack() as stack:
        stack.enter_context(state.lock("daemon"))
        tidy(state)
        chosen = choose_installed(bundles, state)
        outbox = Outbox(state.outbox)
        stack.callback(outbox.close)
        # one for all models: the false alarms that are promised are those of the whole device
        recorder = Recorder(outbox, window_s)
        stack.callback(recorder.stop)
        recorder.start()
        lifecycle = Lifecycle(state, options, recorder, allowed_mib=allowed_mib)
        offers = [_offer(lifecycle, each.name, each.version, opened=each.opened) for each in chosen]
        daemon = Daemon(offers, settings, announce, lambda: _shelf(lifecycle))
        try:
            stopped_by = daemon.run()
        except EdgeKitError:  # no crash: a reason that is told
            lifecycle.starts.clear()
            raise
        lifecycle.starts.clear()
        return stopped_by


def choose_installed(bundles: Sequence[Path], state: StateFolder) -> list[Installed]:
    """Install what is given and return it, or return what is installed.

    Raises:
        UsageError: There is nothing, or two bundles of one name are given.
    """
    found = [install(path, state) for path in bundles] or installed(state)
    if not found:
        raise UsageError(f"no bundle is installed in {state.root}", hint="Give one: edgekit serve BUNDLE.")
    names = [bundle.name for bundle in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two of the bundles are called {twice[0]!r}", hint="Serve one of them.")
    return found


def _shelf(lifecycle: Lifecycle) -> list[Offer]:
    return [_offer(lifecycle, name, version, reason) for name, version, reason in lifecycle.shelf()]


def _offer(
    lifecycle: Lifecycle, name: str, version: int, reason: str = "", opened: Bundle | None = None
) -> Offer:
    def unload(model: Servable) -> None:
        lifecycle.unload(cast("Model", model))

    return Offer(name, partial(lifecycle.load, name, opened), version, unload, reason)
