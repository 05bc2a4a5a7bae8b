"""`edgekit sync`."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["sync"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def sync() -> None:
    """Run the sync server."""


@sync.command()
@click.option(
    "--db", metavar="URL", help="Database, sqlite:///FILE. [default: sync.sqlite in the state folder]"
)
@click.option(
    "--listen",
    default="127.0.0.1:8090",
    show_default=True,
    metavar="HOST:PORT",
    help="Port 0 takes a free one.",
)
@click.option("--tls-cert", type=_FILE, help="Certificate chain, PEM.")
@click.option("--tls-key", type=_FILE, help="Its private key, PEM.")
@click.option(
    "--behind-proxy", is_flag=True, help="A proxy in front does TLS and decides who may read the pages."
)
def serve(
    db: str | None, listen: str, tls_cert: Path | None, tls_key: Path | None, behind_proxy: bool
) -> None:
    """Enrol devices, keep their reports, show them on a page.

    Reading needs no token yet: without --behind-proxy only this machine may read, wherever the server listens.
    """
    from edgekit.cli.fleet import database_url
    from edgekit.errors import UnavailableError

    try:
        from edgekit.sync.serve import Listen, parse_listen, run_server
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"the package {error.name} is missing", hint="Run: pip install 'edgekit-deploy[sync]'"
        ) from error

    host, port = parse_listen(listen)
    run_server(
        database_url(db),
        Listen(host, port, tls_cert, tls_key, behind_proxy),
        lambda url: click.echo(f"listening on {url}"),
    )
