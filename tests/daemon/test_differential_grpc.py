"""gRPC beside the real Triton's: recorded answers in CI, both live in the soak lane."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc")

from tests.corpus import corpus_folder  # noqa: E402
from tests.daemon.differential_grpc import Called, Outcome, call, calls  # noqa: E402
from tests.daemon.serving import PLAIN, Running  # noqa: E402
from tests.daemon.test_differential import listed, models  # noqa: E402
from tests.daemon.triton_server import made_environment, triton  # noqa: E402

pytestmark = pytest.mark.device

RECORDED = Path(__file__).parent.parent / "vectors" / "triton-2.51-grpc.json.gz"
SEED, RECORDED_COUNT, SOAK_COUNT = 20_51, 1_500, 20_000

Rules = Mapping[tuple[str, str, str], str]


def rules() -> Rules:
    """Read the list: (kind, Triton's status, ours) to the reason."""
    rows = listed("grpc")
    return {(kind, row["triton"], row["ours"]): row["reason"] for row in rows for kind in row["kinds"]}


def compare(called: Called, theirs: Outcome, ours: Outcome, known: Rules) -> tuple[str, str, str] | None:
    """Compare two outcomes; return the row that allows a difference, None where there is none.

    Raises:
        AssertionError: They differ, and no row allows it.
    """
    if theirs.code != ours.code:
        key = (called.kind, theirs.code, ours.code)
        assert key in known, (called, theirs, ours)
        return key
    if theirs.code == "OK":
        assert _essence(called.kind, theirs.message) == _essence(called.kind, ours.message), (
            called,
            theirs,
            ours,
        )
    return None


def _essence(kind: str, message: Any) -> object:
    """Return what of a good answer must be the same."""
    if kind == "server metadata":
        return sorted(message)
    if kind == "model metadata":
        return {**message, "platform": None}
    if kind == "configuration":
        config = message["config"]
        return [config.get(key) for key in ("name", "max_batch_size", "input", "output", "version_policy")]
    if kind == "statistics":
        return [
            (one["name"], one["version"], sorted(one["inference_stats"])) for one in message["model_stats"]
        ]
    if "outputs" in message:
        raw = message["raw_output_contents"]
        tensors = {one["name"]: (one, data) for one, data in zip(message["outputs"], raw, strict=True)}
        return {**message, "outputs": None, "raw_output_contents": None}, tensors
    return message


def digest(called: Called) -> str:
    """Return a few letters that change with the call."""
    return hashlib.sha256(repr(called).encode()).hexdigest()[:8]


def record(environment: Path, folder: Path) -> None:
    """Ask Triton and write down its answers."""
    with triton(environment, folder) as (_, (host, port)), grpc.insecure_channel(f"{host}:{port}") as channel:
        rows = [(digest(called), *call(channel, called)) for called in calls(SEED, RECORDED_COUNT)]
    text = json.dumps({"seed": SEED, "answers": rows}, separators=(",", ":"), ensure_ascii=False)
    RECORDED.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def served(folder: Path) -> Running:
    """Return this daemon with Triton's models."""
    return Running(models(), PLAIN, folder, shared_memory=True, linger_s=0.0, grpc=("127.0.0.1", 0))


def test_the_answers_are_those_that_triton_gave(tmp_path: Path) -> None:
    known, seen = rules(), Counter[tuple[str, str, str]]()
    answers = json.loads(gzip.decompress(RECORDED.read_bytes()))["answers"]
    with served(tmp_path) as running:
        assert running.listening.grpc is not None
        with grpc.insecure_channel("{}:{}".format(*running.listening.grpc)) as channel:
            for called, (expected, code, message) in zip(calls(SEED, RECORDED_COUNT), answers, strict=True):
                assert digest(called) == expected, (
                    "the calls have changed: `make triton-answers` records anew"
                )
                row = compare(called, Outcome(code, message), call(channel, called), known)
                if row is not None:
                    seen[row] += 1
    assert not known.keys() - seen.keys(), "rows of the list that nothing needs"


@pytest.mark.soak
@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton's wheel is for x86-64 alone")
def test_both_answer_alike(tmp_path: Path) -> None:
    environment = made_environment(corpus_folder())
    known, seen = rules(), Counter[tuple[str, str, str]]()
    count = int(os.environ.get("EDGEKIT_DIFFERENTIAL", SOAK_COUNT))
    there, here = tmp_path / "triton", tmp_path / "ours"
    there.mkdir()
    with triton(environment, there) as (_, (host, port)), served(here) as running:
        assert running.listening.grpc is not None
        theirs = grpc.insecure_channel(f"{host}:{port}")
        mine = grpc.insecure_channel("{}:{}".format(*running.listening.grpc))
        with theirs, mine:
            for called in calls(SEED + 1, count):
                row = compare(called, call(theirs, called), call(mine, called), known)
                if row is not None:
                    seen[row] += 1
    print(f"{count} gRPC calls; deliberate differences:")
    for (kind, status, own), times in sorted(seen.items()):
        print(f"  {kind}: {status} there, {own} here, {times} times: {known[kind, status, own]}")
