"""Files onto the device: what is there is not sent again, what is half there is gone on with, what is wrong is sent anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from edgekit.deploy.link import Link
from edgekit.errors import NetworkError

__all__ = ["Sent", "send"]

_CHUNK = 1 << 18


class Sent(msgspec.Struct, frozen=True):
    """What a copy took.

    Attributes:
        files: How many were wanted.
        bytes: Of all of them.
        sent_bytes: That really travelled.
        resumed: Files that were gone on with.
        spoilt: Partial files that were not what had been sent, and were sent anew.
    """

    files: int = 0
    bytes: int = 0
    sent_bytes: int = 0
    resumed: int = 0
    spoilt: int = 0

    def __str__(self) -> str:
        """Return it in words."""
        parts = [f"{self.files} files, {self.bytes / 1e6:.1f} MB"]
        if self.sent_bytes != self.bytes:
            parts.append(f"{self.sent_bytes / 1e6:.1f} MB sent, the rest was there")
        if self.resumed:
            parts.append(f"{self.resumed} gone on with")
        if self.spoilt:
            parts.append(f"{self.spoilt} partial file(s) were damaged and sent anew")
        return "; ".join(parts)


class _There(msgspec.Struct):
    whole: bool
    bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: str


class _Have(msgspec.Struct):
    files: dict[str, _There]


class _Put(msgspec.Struct):
    whole: bool


def send(link: Link, folder: str, files: Mapping[str, Path], progress: Callable[[int, int], None]) -> Sent:
    """Send files; each is whole at its place on the device, by its SHA-256, or not there.

    Args:
        link: To the device.
        folder: Of EdgeKit's folder there.
        files: Name in the folder to the file here.
        progress: Is told (bytes done, bytes in all).

    Raises:
        NetworkError: The link broke (what came over is kept), or a file arrives damaged twice.
        MachineError: The device's disk is full, say.
    """
    digests = {name: _sha256(path) for name, path in files.items()}
    there = link.ask("have", _Have, files={f"{folder}/{name}": each for name, each in digests.items()}).files
    total = sum(path.stat().st_size for path in files.values())
    done, sent = 0, Sent(len(files), total)
    for name, path in files.items():
        found = there.get(f"{folder}/{name}", _There(whole=False, bytes=0, sha256=""))
        if not found.whole:
            size = path.stat().st_size
            start = (
                found.bytes if 0 < found.bytes <= size and _sha256(path, found.bytes) == found.sha256 else 0
            )
            sent = _put(link, f"{folder}/{name}", path, digests[name], start, sent, lambda n, d=done: progress(d + n, total))  # type: ignore[misc]  # fmt: skip
            sent = msgspec.structs.replace(
                sent, resumed=sent.resumed + (start > 0), spoilt=sent.spoilt + (start == 0 < found.bytes)
            )
        done += path.stat().st_size
        progress(done, total)
    return sent


def _put(
    link: Link, name: str, path: Path, digest: str, start: int, sent: Sent, progress: Callable[[int], None]
) -> Sent:
    """Send the rest of one file; once more from its beginning where what arrived is not what was sent."""
    size = path.stat().st_size
    for offset in (start, 0):
        body = _body(path, offset, progress)
        answer = link.ask("put", _Put, name=name, sha256=digest, offset=offset, size=size, body=body)
        sent = msgspec.structs.replace(sent, sent_bytes=sent.sent_bytes + size - offset)
        if answer.whole:
            return sent
    raise NetworkError(
        f"{path.name} arrives damaged on {link.address}",
        hint="Check the device's disk and memory, then run again.",
    )


def _body(path: Path, offset: int, progress: Callable[[int], None]) -> Iterator[bytes]:
    with path.open("rb") as stream:
        stream.seek(offset)
        while block := stream.read(_CHUNK):
            yield block
            progress(stream.tell())


def _sha256(path: Path, size: int | None = None) -> str:
    """Return the SHA-256 of a file, or of its first `size` bytes."""
    digest, left = hashlib.sha256(), path.stat().st_size if size is None else size
    with path.open("rb") as stream:
        while left and (block := stream.read(min(_CHUNK, left))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
