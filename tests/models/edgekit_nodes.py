"""What EdgeKit does with ONNX's own node tests: `python -m tests.models.edgekit_nodes FORMAT OUT.json`.

Each test is converted at fp32 with its own inputs as the data, through `edgekit.convert.convert` with gate and ladder;
what ships is run and judged as the bare runtimes are, on the test's own answers. Only the workers live longer than one
conversion, so that their imports are paid once.
"""

from __future__ import annotations

import atexit
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from unittest.mock import patch

import msgspec
import numpy as np

from edgekit.convert import ConvertRequest, convert
from edgekit.errors import EdgeKitError
from edgekit.factory import Factory
from edgekit.process import Worker
from tests.corpus import ROOT
from tests.models.bare_nodes import NodeResult, main, run_onnxruntime, run_openvino
from tests.models.nodes import NodeCase, agrees

if TYPE_CHECKING:
    from edgekit.bundle import Bundle

__all__ = ["convert_node", "disputed"]

#: Parity asks for this many samples; a test has one.
_TIMES = 32


class _Lasting(Factory):
    """A factory whose workers serve the next one too; one job at a time."""

    workers: ClassVar[dict[str, Worker]] = {}

    @contextmanager
    def _worker(self, environment: str) -> Iterator[Worker]:
        if environment not in self.workers:
            folder = Path(tempfile.mkdtemp(prefix="edgekit-nodes-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            self.workers[environment] = Worker(folder, self._limits)
            atexit.register(self.workers[environment].close)
        yield self.workers[environment]


@cache
def disputed() -> frozenset[str]:
    """Return the tests that ONNX Runtime answers otherwise than ONNX; an artifact is held to ONNX Runtime's answer."""
    expected = msgspec.toml.decode((ROOT / "tests" / "corpus_expected.toml").read_bytes())
    return frozenset(expected["node-tests"]["disputed"])


def convert_node(format_: str, case: NodeCase) -> NodeResult:
    """Convert one test; return `right` or `wrong` for an artifact that ships, else `refused` and why."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        patch("edgekit.convert.Factory", _Lasting),
    ):
        folder = Path(scratch)
        (folder / "node.onnx").write_bytes(case.model.SerializeToString())
        request = partial(
            ConvertRequest,
            model=folder / "node.onnx",
            target="x86-64",
            out=folder / "bundle",
            formats=(format_,),
            task="other",
            calibration=_data(folder / "data.npz", case),
            jobs=1,
        )
        try:
            bundle = _converted(request)
        except EdgeKitError as error:
            return NodeResult("refused", str(error).replace(str(folder), "")[:300])
        return _judged(format_, case, bundle)


def _converted(request: Callable[..., ConvertRequest]) -> Bundle:
    """Return the bundle at fp32; of a source that is quantized already at its own precision, as the refusal says."""
    try:
        return convert(request(precisions=("fp32",))).bundle
    except EdgeKitError as error:
        own = re.search(r"the source is (\S+) already", str(error))
        if own is None:
            raise
        return convert(request(precisions=(own[1],))).bundle


def _data(path: Path, case: NodeCase) -> Path | None:
    if not case.feeds or any(array.dtype.kind == "V" for array in case.feeds.values()):
        return None  # a type that numpy has only by extension is not for files
    # [1, …] is a sample with its axis; anything else goes as a whole call
    join = np.concatenate if all(a.shape[:1] == (1,) for a in case.feeds.values()) else np.stack
    arrays = {name: join([_storable(array)] * _TIMES) for name, array in case.feeds.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for options
    return path


def _storable(array: np.ndarray) -> np.ndarray:
    return array.astype(str) if array.dtype == object else array


def _judged(format_: str, case: NodeCase, bundle: Bundle) -> NodeResult:
    (artifact,) = bundle.manifest.artifacts.values()
    renamed = {artifact.input_names.get(name, name): array for name, array in (case.feeds or {}).items()}
    run = {"onnx": run_onnxruntime, "openvino": run_openvino}[format_]
    try:
        outputs = run(bundle.root / artifact.path, renamed)
    except Exception as error:  # noqa: BLE001  # whatever a runtime raises is what this measures
        return NodeResult("wrong", f"does not run: {error}"[:300])
    if agrees(case, outputs, artifact.precision):
        return NodeResult("right", "")
    if case.name in disputed():
        return NodeResult("right", "as ONNX Runtime answers, which is not as ONNX does")
    return NodeResult("wrong", "the answer is not the test's")


if __name__ == "__main__":
    main(sys.argv[1:], convert_node, "tests.models.edgekit_nodes")
