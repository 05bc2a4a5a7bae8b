"""`edgekit bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgekit.bundle import Bundle

__all__ = ["bundle"]

_SOURCE = click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group()
def bundle() -> None:
    """Pack, unpack and slice bundles."""


@bundle.command()
@_SOURCE
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path), help="The archive, ending in .edgekit."
)
@_OVERWRITE
@_JSON
def pack(path: Path, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write a bundle's folder as one .edgekit file; the same bundle gives the same bytes."""
    from edgekit.bundle import open_bundle
    from edgekit.bundle import pack as run

    opened = open_bundle(path)
    run(opened, out, overwrite=overwrite)
    _report("packed", opened, out, as_json)


@bundle.command()
@_SOURCE
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The folder.")
@_OVERWRITE
@_JSON
def unpack(path: Path, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write an .edgekit file as a folder."""
    from edgekit.bundle import unpack as run

    _report("unpacked", run(path, out, overwrite=overwrite), out, as_json)


@bundle.command("slice")
@_SOURCE
@click.option("--target", "-t", help="Keep what this device would choose: see `edgekit devices list`.")
@click.option(
    "--artifact", "artifacts", multiple=True, metavar="NAME", help="Keep this artifact; may be repeated."
)
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    help="A folder, or a file ending in .edgekit.",
)
@_OVERWRITE
@_JSON
def slice_(
    path: Path, target: str | None, artifacts: tuple[str, ...], out: Path, overwrite: bool, as_json: bool
) -> None:
    """Write a bundle with the files of one device's plan only; its digest stays the same."""
    from edgekit.bundle import open_bundle, slice_bundle
    from edgekit.errors import UsageError

    if (target is None) == (not artifacts):
        raise UsageError("a slice needs to know what to keep", expected="either --target or --artifact")
    opened = open_bundle(path)
    kept = tuple(dict.fromkeys(artifacts)) if target is None else (_artifact_for(opened, target),)
    _report(
        f"sliced to {', '.join(kept)}", slice_bundle(opened, kept, out, overwrite=overwrite), out, as_json
    )


def _artifact_for(opened: Bundle, target: str) -> str:
    from edgekit.choose import choose
    from edgekit.devices import load_profile

    return choose(load_profile(target), opened.manifest, None, kept=opened.kept).artifact


def _report(done: str, written: Bundle, out: Path, as_json: bool) -> None:
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    if as_json:
        from edgekit.cli.output import print_json

        print_json(
            {"path": str(out), "digest": written.digest, "artifacts": sorted(written.kept), "bytes": size}
        )
    else:
        click.echo(f"{done}: {out} ({size / 1024:,.0f} KiB), digest {written.digest}")
