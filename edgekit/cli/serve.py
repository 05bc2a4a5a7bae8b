"""`edgekit serve`: the inference daemon on the command line."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.daemon.lane import Lane
    from edgekit.daemon.server import Listening

__all__ = ["serve"]

_DEFAULT_HTTP, _DEFAULT_GRPC = "127.0.0.1:8080", "127.0.0.1:8081"


@click.command()
@click.argument("bundles", nargs=-1, type=click.Path(path_type=Path), metavar="[BUNDLE]...")
@click.option("--http", default=_DEFAULT_HTTP, show_default=True, metavar="HOST:PORT", help="TCP address; port 0 for any, `off` for no TCP.")  # fmt: skip
@click.option("--grpc", metavar="HOST:PORT", help="Speak gRPC there too; `on` for 127.0.0.1:8081.")
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="Unix socket.  [default: $RUNTIME_DIRECTORY/edgekit.sock, where that is set]")  # fmt: skip
@click.option("--device", metavar="ID", help="Choose for this device profile, not for the detected one.")
@click.option("--runtime", metavar="R", help="Run in this runtime.")
@click.option("--allow-fallback", is_flag=True, help="Take the next provider where a forced one is absent.")
@click.option("--allow-unproven", is_flag=True, help="Allow an artifact that the gate left unproven.")
@click.option("--window", "window_s", type=click.FloatRange(min=1.0), default=60.0, show_default=True, metavar="S", help="Seconds of one monitor window.")  # fmt: skip
@click.option("--state-dir", type=click.Path(path_type=Path), help="State folder.")
@click.option("--threads", type=click.IntRange(1, 256), metavar="N", help="Intra-op threads of the runtime.")
@click.option("--max-body", type=click.FloatRange(min=0.001), default=64.0, show_default=True, metavar="MIB", help="Largest request body, after decompression.")  # fmt: skip
@click.option("--max-queue", type=click.IntRange(min=1), default=32, show_default=True, metavar="N", help="Requests that may wait for one model; more are answered 503.")  # fmt: skip
@click.option("--max-memory", type=click.FloatRange(min=1.0), metavar="MIB", help="Memory that all models together may take; a version that needs more is not loaded.  [default: what the machine has]")  # fmt: skip
@click.option("--shared-memory", is_flag=True, help="Let clients hand over tensors in /dev/shm; TCP on loopback only.")  # fmt: skip
@click.option("--repository-control", is_flag=True, help="Let clients load and unload installed bundles.")
def serve(
    bundles: tuple[Path, ...],
    http: str,
    grpc: str | None,
    socket_path: Path | None,
    device: str | None,
    runtime: str | None,
    allow_fallback: bool,
    allow_unproven: bool,
    window_s: float,
    state_dir: Path | None,
    threads: int | None,
    max_body: float,
    max_queue: int,
    max_memory: float | None,
    shared_memory: bool,
    repository_control: bool,
) -> int:
    """Run the inference daemon.

    Each BUNDLE is installed into the state folder, then served; without one, what is installed is. A new version is
    loaded and tested in a process of its own first: if it fails, the one before is served. The Open Inference
    Protocol v2 is spoken over HTTP on TCP and on a Unix socket at once, and over gRPC with --grpc.

    SIGTERM ends it after what is under way (exit 0); Ctrl-C does the same (exit 130).
    """
    from edgekit.daemon.inbound import Limits
    from edgekit.daemon.server import Settings, parse_address
    from edgekit.daemon.serving import LoadOptions, serve_bundles
    from edgekit.state import open_state

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    settings = Settings(
        http=None if http == "off" else parse_address(http),
        grpc=None if grpc is None else parse_address(_DEFAULT_GRPC if grpc == "on" else grpc),
        socket=socket_path or _default_socket(),
        limits=Limits(body_bytes=int(max_body * (1 << 20))),
        queue_limit=max_queue,
        shared_memory=shared_memory,
        repository_control=repository_control,
    )
    if settings.http is None and settings.socket is None:
        raise UsageError("nothing to listen on", hint="Give --socket PATH with --http off.")
    options = LoadOptions(device, runtime, allow_fallback, allow_unproven, threads)
    state = open_state(state_dir)
    stopped_by = serve_bundles(
        bundles, state, settings, options, window_s=window_s, announce=_announce, allowed_mib=max_memory
    )
    return 130 if stopped_by == signal.SIGINT else 0


def _default_socket() -> Path | None:
    folder = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(folder, "edgekit.sock") if folder else None


def _announce(news: Listening | Lane) -> None:
    try:
        _print(news)
    except OSError:  # whoever read it has gone, or their disk is full: the models are wanted all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(news: Listening | Lane) -> None:
    from edgekit.daemon.lane import Lane

    if isinstance(news, Lane):
        plan = news.model.plan
        click.echo(f"ready: {news.model.name} version {news.model.version}, {plan.artifact} on {plan.runtime} for {plan.device}")  # fmt: skip
        for reason in plan.reasons:
            click.echo(f"  {reason}")
    else:
        if news.http is not None:
            click.echo(f"listening on http://{_address(news.http)}")
        if news.grpc is not None:
            click.echo(f"listening on grpc://{_address(news.grpc)}")
        if news.socket is not None:
            click.echo(f"listening on unix:{news.socket}")
    sys.stdout.flush()


def _address(address: tuple[str, int]) -> str:
    host, port = address
    return f"{f'[{host}]' if ':' in host else host}:{port}"
