"""What commands print: tables, progress bars and JSON. Colours and bars on a terminal only."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

__all__ = ["print_json", "print_table", "progress_bar"]

_COLOURS = {
    "accepted": "green",
    "unproven": "yellow",
    "refused": "red",
    "failed": "red",
    "skipped": "bright_black",
}


def print_json(data: Any) -> None:
    """Print `data` as indented JSON with its keys in the order given."""
    import msgspec

    try:
        text = msgspec.json.format(msgspec.json.encode(data), indent=2).decode()
    except UnicodeEncodeError:  # a path that is not UTF-8: escaped as Python's json reads it again
        text = json.dumps(msgspec.to_builtins(data), indent=2)
    click.echo(text)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column to the left, columns of numbers to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    numeric = [
        all(not row[i] or row[i].lstrip("+-–")[:1].isdigit() for row in rows) for i in range(len(header))
    ]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(cells).rstrip()

    if title:
        click.secho(title, bold=True)
    click.secho(line(header), dim=True)
    for row in rows:
        text = line(row)
        colour = _COLOURS.get(row[-1])
        if colour:
            text = text[: -len(row[-1])] + click.style(row[-1], fg=colour)
        click.echo(text)


@contextmanager
def progress_bar(title: str, *, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (phrase, steps done, steps in all) that moves a bar on a terminal, and is silent elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda _phrase, _done, _all: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    shown = Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # else what is piped on would end on the terminal
    )
    with shown as bar:
        task = bar.add_task(title, total=None)

        def show(phrase: str, done: int, total: int) -> None:
            bar.update(task, description=phrase, completed=done, total=total if total > 1 else None)

        yield show
