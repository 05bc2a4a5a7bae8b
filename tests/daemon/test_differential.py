"""The daemon beside the real Triton: the same requests, the same answers, but for a list of deliberate differences.

CI compares with answers that were recorded from Triton 2.51 (`make triton-answers` records them anew); the soak lane asks
both, 50,000 times.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import math
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgekit.daemon.codec import DATATYPES
from edgekit.model import Model
from edgekit.tensors import TensorSpec
from tests.corpus import corpus_folder
from tests.daemon.differential import Answered, ask, digest, requests
from tests.daemon.differential_valid import MODELS, Asked, Tensor
from tests.daemon.serving import PLAIN, Running, model_of
from tests.daemon.triton_server import made_environment, triton

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.device

RECORDED = Path(__file__).parent.parent / "vectors" / "triton-2.51.json.gz"
TABLE = Path(__file__).with_name("differences.toml")
SEED, RECORDED_COUNT, SOAK_COUNT = 20_51, 2_500, 50_000
#: Triton's process ends with these.
DEADLY = "a shape beyond all memory"


class Difference(NamedTuple):
    """One row of the list."""

    reason: str
    payload: bool


Rules = Mapping[tuple[str, int, int], Difference]


def listed(section: str) -> list[dict[str, Any]]:
    """Return the rows of one section of the list of differences."""
    rows: list[dict[str, Any]] = tomllib.loads(TABLE.read_text(encoding="utf-8"))[section]
    return rows


def rules() -> Rules:
    """Read the list: (kind, Triton's status, ours) to what it says."""
    made: dict[tuple[str, int, int], Difference] = {}
    for row in listed("difference"):
        for kind in row["kinds"]:
            key = (kind, row["triton"], row["ours"])
            assert key not in made, key
            made[key] = Difference(row["reason"], row.get("payload", False))
    return made


def models() -> list[Model]:
    """Return what Triton serves, as models of ours."""
    return [_model(name, *parts) for name, parts in MODELS.items()]


def _model(
    name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], expressions: Mapping[str, str]
) -> Model:
    def function(feed: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        return {name: eval(text, {}, dict(feed)) for name, text in expressions.items()}

    return model_of(name, [_spec(one) for one in inputs], [_spec(one) for one in outputs], function)


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, DATATYPES[tensor.wire].dtype, tensor.shape)


def compare(
    asked: Asked, theirs: Answered | None, ours: Answered, known: Rules
) -> tuple[str, int, int] | None:
    """Compare two answers; return the row of the list that allows a difference, None where there is none.

    Raises:
        AssertionError: They differ, and no row allows it.
    """
    key = (asked.kind, 0 if theirs is None else theirs.status, ours.status)
    if ours.status != 200:
        assert isinstance(ours.message["error"], str), (asked, ours)
    if theirs is None or theirs.status != ours.status:
        assert key in known, (asked, theirs, ours)
        return key
    if theirs.status == 200 and not _same(_essence(asked, theirs), _essence(asked, ours)):
        assert key in known, (asked, theirs, ours)
        assert known[key].payload, (asked, theirs, ours)
        return key
    return None


def _essence(asked: Asked, answered: Answered) -> object:
    """Return what of a good answer must be the same."""
    message = answered.message
    kind = asked.kind
    if kind == "health":
        return None  # a body is optional: Triton has none, KServe's clients want one
    if kind == "server metadata":
        return sorted(message)
    if kind == "model metadata":
        return {**message, "platform": None}
    if kind == "statistics":
        return _keys(message)
    if kind == "configuration":
        return _configuration(message)
    if isinstance(message, dict) and "outputs" in message:
        return answered.encoding, {**message, "outputs": None}, _tensors(message["outputs"], answered.binary)
    return message, answered.binary


def _keys(message: Any) -> object:
    """Return the shape of statistics: what is counted differs with what is answered."""
    return [
        {
            **{key: None if isinstance(value, int) else value for key, value in one.items()},
            "inference_stats": {key: sorted(value) for key, value in one["inference_stats"].items()},
            "batch_stats": {tuple(sorted(two)) for two in one["batch_stats"]} or _BATCH_KEYS,
        }
        for one in message["model_stats"]
    ]


_BATCH_KEYS = {("batch_size", "compute_infer", "compute_input", "compute_output")}


def _configuration(message: Any) -> object:
    tensors = [
        [(one["name"], one["data_type"], one["dims"]) for one in message[side]]
        for side in ("input", "output")
    ]
    return message["name"], message["max_batch_size"], tensors


def _tensors(outputs: Iterable[Any], binary: bytes) -> dict[str, object]:
    """Return outputs by name: Triton sends them in the model's order, this daemon in that of the request."""
    found: dict[str, object] = {}
    at = 0
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        found[output["name"]] = (output, binary[at : at + size])
        at += size
    assert at == len(binary)
    return found


def _same(left: Any, right: Any) -> bool:
    """Compare, with NaN equal to itself."""
    if isinstance(left, float) and isinstance(right, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


@contextmanager
def ours(folder: Path) -> Iterator[http.client.HTTPConnection]:
    """Run this daemon with Triton's models."""
    with (
        Running(models(), PLAIN, folder, shared_memory=True, linger_s=0.0) as running,
        closing(http.client.HTTPConnection(*running.address, timeout=30)) as connection,
    ):
        yield connection


def record(environment: Path, folder: Path) -> None:
    """Ask Triton and write down its answers."""
    rows: list[object] = []
    with (
        triton(environment, folder) as (http_address, _),
        closing(http.client.HTTPConnection(*http_address, timeout=30)) as connection,
    ):
        for asked in requests(SEED, RECORDED_COUNT):
            if asked.kind == DEADLY:
                rows.append([digest(asked)])
                continue
            got = ask(connection, asked)
            message = got.message if got.status == 200 else None
            rows.append(
                [digest(asked), got.status, got.encoding, message, base64.b64encode(got.binary).decode()]
            )
    text = json.dumps({"seed": SEED, "answers": rows}, separators=(",", ":"), ensure_ascii=False)
    RECORDED.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def recorded() -> list[tuple[str, Answered | None]]:
    """Return the answers that were written down, with the requests' digests; None where Triton was not asked."""
    rows = json.loads(gzip.decompress(RECORDED.read_bytes()))["answers"]
    return [
        (row[0], Answered(row[1], row[2], row[3], base64.b64decode(row[4])) if len(row) > 1 else None)
        for row in rows
    ]


def test_the_answers_are_those_that_triton_gave(tmp_path: Path) -> None:
    known, seen = rules(), Counter[tuple[str, int, int]]()
    with ours(tmp_path) as connection:
        answers = recorded()
        for asked, (expected, theirs) in zip(requests(SEED, RECORDED_COUNT), answers, strict=True):
            assert digest(asked) == expected, "the requests have changed: `make triton-answers` records anew"
            row = compare(asked, theirs, ask(connection, asked), known)
            if row is not None:
                seen[row] += 1
    assert not known.keys() - seen.keys(), "rows of the list that nothing needs"


@pytest.mark.soak
@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton's wheel is for x86-64 alone")
def test_both_answer_alike(tmp_path: Path) -> None:
    environment = made_environment(corpus_folder())
    known, seen = rules(), Counter[tuple[str, int, int]]()
    count = int(os.environ.get("EDGEKIT_DIFFERENTIAL", SOAK_COUNT))
    there, here = tmp_path / "triton", tmp_path / "ours"
    there.mkdir()
    with (
        triton(environment, there) as (address, _),
        closing(http.client.HTTPConnection(*address, timeout=30)) as theirs,
        ours(here) as mine,
    ):
        for asked in requests(SEED + 1, count):
            answer = None if asked.kind == DEADLY else ask(theirs, asked)
            row = compare(asked, answer, ask(mine, asked), known)
            if row is not None:
                seen[row] += 1
    print(f"{count} requests; deliberate differences:")
    for (kind, status, own), times in sorted(seen.items()):
        print(f"  {kind}: {status} there, {own} here, {times} times: {known[kind, status, own].reason}")


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        (Answered(200, "", {"a": 1.0}, b""), Answered(200, "", {"a": 2.0}, b"")),
        (Answered(200, "", {"a": 1.0}, b"x"), Answered(200, "", {"a": 1.0}, b"y")),
        (Answered(200, "", {"a": 1.0}, b""), Answered(400, "", {"error": "no"}, b"")),
        (Answered(400, "", None, b""), Answered(200, "", {}, b"")),
        (Answered(400, "", None, b""), Answered(404, "", {"error": "no"}, b"")),
    ],
)
def test_what_differs_is_noticed(theirs: Answered, mine: Answered) -> None:
    asked = Asked("valid", "POST", "/", {}, ())
    with pytest.raises(AssertionError):
        compare(asked, theirs, mine, rules())
