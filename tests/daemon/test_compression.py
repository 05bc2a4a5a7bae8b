"""Compressed request bodies: what comes out, and what a hostile one may cost."""

from __future__ import annotations

import gzip
import zlib

import pytest

from edgekit.daemon.compression import decompress
from edgekit.daemon.http1 import HttpError

pytestmark = pytest.mark.device

_LIMIT = 4 << 20


def test_members_and_steps_of_any_size_come_out_whole() -> None:
    pieces = [bytes([n % 251]) * (n * n) for n in range(200)]
    members = b"".join(gzip.compress(piece) for piece in pieces)
    assert decompress(memoryview(members), "gzip", _LIMIT) == b"".join(pieces)
    zeros = bytes(_LIMIT)
    assert decompress(memoryview(zlib.compress(zeros)), "deflate", _LIMIT) == zeros


def test_a_body_of_empty_members_is_refused_before_it_costs_anything() -> None:
    # each ending used to copy all that followed it: 64 MiB of them kept the worker busy for hours
    body = memoryview(gzip.compress(b"") * 200_000)
    with pytest.raises(HttpError, match="more than 10000 gzip members"):
        decompress(body, "gzip", _LIMIT)


@pytest.mark.parametrize("keep", [1, 10, -1])
def test_a_body_that_ends_early_is_called_cut_off(keep: int) -> None:
    with pytest.raises(HttpError, match="cut off"):
        decompress(memoryview(gzip.compress(bytes(300_000))[:keep]), "gzip", _LIMIT)


def test_the_limit_holds_across_members() -> None:
    half = gzip.compress(bytes(_LIMIT // 2))
    assert len(decompress(memoryview(half * 2), "gzip", _LIMIT)) == _LIMIT
    with pytest.raises(HttpError, match="larger than") as caught:
        decompress(memoryview(half * 2 + gzip.compress(b"x")), "gzip", _LIMIT)
    assert caught.value.status == 413
