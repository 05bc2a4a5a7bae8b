"""From bundles to a daemon: install, load under one recorder, serve, put everything away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from edgekit.bundle import open_bundle
from edgekit.daemon.lane import Lane, Servable
from edgekit.daemon.library import Offer
from edgekit.daemon.repository import Installed, install, installed, tidy
from edgekit.daemon.server import Daemon, Listening, Settings
from edgekit.errors import UsageError
from edgekit.model import Model, load, monitor_for
from edgekit.monitor.outbox import Outbox
from edgekit.monitor.recorder import Recorder
from edgekit.state import StateFolder

__all__ = ["LoadOptions", "choose_installed", "serve_bundles"]


class LoadOptions(msgspec.Struct, frozen=True):
    """How every model is loaded; see `edgekit.load`."""

    device: str | None = None
    runtime: str | None = None
    allow_fallback: bool = False
    allow_unproven: bool = False
    threads: int | None = None


def serve_bundles(
    bundles: Sequence[Path],
    state: StateFolder,
    settings: Settings,
    options: LoadOptions,
    *,
    window_s: float,
    announce: Callable[[Listening | Lane], None],
) -> int:
    """Install the bundles and serve them; without any, serve the newest version of everything installed.

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

        def shelf() -> list[Offer]:
            return [_offer(bundle, options, recorder, state) for bundle in installed(state)]

        offers = [_offer(bundle, options, recorder, state) for bundle in chosen]
        return Daemon(offers, settings, announce, shelf).run()


def choose_installed(bundles: Sequence[Path], state: StateFolder) -> list[Installed]:
    """Install what is given and return it, or return the newest version of everything installed.

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


def _offer(bundle: Installed, options: LoadOptions, recorder: Recorder, state: StateFolder) -> Offer:
    def load_watched() -> Model:
        opened = bundle.opened or open_bundle(bundle.path)
        model = load(
            opened,
            device=options.device,
            runtime=options.runtime,
            monitor=False,
            allow_fallback=options.allow_fallback,
            allow_unproven=options.allow_unproven,
            threads=options.threads,
            state_dir=state.root,
        )
        model.monitor = monitor_for(opened, model.plan)
        recorder.watch(model.monitor)
        return model

    def unwatch(model: Servable) -> None:
        if model.monitor is not None:
            recorder.unwatch(model.monitor)

    return Offer(bundle.name, load_watched, bundle.version, unwatch)
