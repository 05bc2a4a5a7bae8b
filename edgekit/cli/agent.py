"""`edgekit agent`."""

from __future__ import annotations

import random
import signal
import threading
from types import FrameType

import click

__all__ = ["agent"]


@click.command()
@click.option(
    "--sync", "url", required=True, metavar="URL", help="The sync server; https, or http on this machine."
)
@click.option(
    "--enroll-token",
    metavar="TOKEN",
    envvar="EDGEKIT_ENROLL_TOKEN",
    help="One-time token from `edgekit fleet enroll`; $EDGEKIT_ENROLL_TOKEN keeps it out of the process list.",
)
@click.option(
    "--ca-file", type=click.Path(exists=True, dir_okay=False), help="Trust these certificates (PEM) only."
)
@click.option("--state-dir", type=click.Path(file_okay=False), help="The state folder that the daemon uses.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.1, 3600),
    default=15.0,
    show_default=True,
    metavar="S",
    help="How often to look for new windows, in seconds.",
)
@click.option("--once", is_flag=True, help="Send everything there is, then exit.")
def agent(
    url: str,
    enroll_token: str | None,
    ca_file: str | None,
    state_dir: str | None,
    interval_s: float,
    once: bool,
) -> None:
    """Send this device's reports to a sync server."""
    from edgekit.agent import Agent, Http, check_url
    from edgekit.identity import open_identity
    from edgekit.monitor.outbox import Outbox
    from edgekit.state import open_state

    url = check_url(url)
    stop = threading.Event()

    def finish(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, finish)
    state = open_state(state_dir)
    with state.lock("agent"):
        http = Http(url, ca_file)
        sender = Agent(
            url, state, open_identity(state), http, stop=stop, say=_say, rand=random.SystemRandom().random
        )
        sender.enrol(enroll_token or None, once=once)
        with Outbox(state.outbox) as outbox:
            sent = sender.run(outbox, interval_s=interval_s, once=once)
        http.close()
    _say(f"{sent} window(s) sent and acknowledged")


def _say(line: str) -> None:
    click.echo(f"edgekit agent: {line}", err=True)
