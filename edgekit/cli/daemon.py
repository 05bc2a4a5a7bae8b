"""`edgekit daemon`: what a running inference daemon says of itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["daemon"]

_DEFAULT_URL = "http://127.0.0.1:8080"


@click.group()
def daemon() -> None:
    """Ask a running inference daemon how it is."""


@daemon.command()
@click.option("--url", metavar="URL", help=f"`http://HOST:PORT` or `unix:/path`.  [default: the socket in $RUNTIME_DIRECTORY, else {_DEFAULT_URL}]")  # fmt: skip
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=5.0, show_default=True, metavar="S", help="Seconds to wait for each answer.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(url: str | None, timeout_s: float, as_json: bool) -> None:
    """Show whether the daemon is ready, its models, and what they have done since they were loaded."""
    from edgekit.cli.output import print_json, print_table
    from edgekit.client import Client

    with Client(url or _default_url(), timeout_s=timeout_s) as client:
        server = client.server()
        found = {
            "url": client.url,
            "version": server.get("version", ""),
            "ready": client.is_ready(),
            "models": _models(client.index(), client.statistics()),
        }
    if as_json:
        print_json(found)
        return
    click.secho(f"{found['url']}: {'ready' if found['ready'] else 'not ready'}", bold=True)
    header = ("model", "version", "inferences", "mean ms", "failed", "state")
    print_table("", header, [_row(model) for model in found["models"]])


def _default_url() -> str:
    folder = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    path = Path(folder, "edgekit.sock")
    return f"unix:{path}" if folder and path.exists() else _DEFAULT_URL


def _models(index: Sequence[dict[str, Any]], statistics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the index, each served model with what it has done: counts, and the mean time of an inference in ms."""
    done = {(one["name"], one["version"]): one for one in statistics}
    models = []
    for entry in index:
        model = {key: entry.get(key, "") for key in ("name", "version", "state", "reason")}
        seen = done.get((model["name"], model["version"]))
        if seen is not None:
            success = seen["inference_stats"]["success"]
            count = success["count"]
            model["inferences"] = seen["inference_count"]
            model["mean_ms"] = round(success["ns"] / count / 1e6, 3) if count else None
            model["failed"] = seen["inference_stats"]["fail"]["count"]
        models.append(model)
    return models


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    mean_ms = model.get("mean_ms")
    state = model["state"] + (f": {model['reason']}" if model["reason"] else "")
    return (
        model["name"],
        model["version"],
        str(model.get("inferences", "")),
        "" if mean_ms is None else f"{mean_ms:.3f}",
        str(model.get("failed", "")),
        state,
    )
