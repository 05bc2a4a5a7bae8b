"""Runtimes: engines that run artifacts, one file each, imported on first use."""

from __future__ import annotations

from importlib import import_module

from edgekit.errors import UsageError
from edgekit.runtimes.base import ModelFiles, OpProfiler, OpTime, Runtime, Session, SessionOptions

__all__ = [
    "RUNTIMES",
    "ModelFiles",
    "OpProfiler",
    "OpTime",
    "Runtime",
    "Session",
    "SessionOptions",
    "get_runtime",
]

#: Runtime name to class. Adding a runtime is one file, one line here and one test.
RUNTIMES = {
    "litert": "edgekit.runtimes.litert:LiteRT",
    "onnxruntime": "edgekit.runtimes.onnxruntime:OnnxRuntime",
    "openvino": "edgekit.runtimes.openvino:OpenVino",
    "null": "edgekit.runtimes.null:Null",
}


def get_runtime(name: str) -> Runtime:
    """Return the runtime called `name`; its native library is imported by its methods, not here.

    Raises:
        UsageError: No runtime has that name.
    """
    if name not in RUNTIMES:
        raise UsageError(f"unknown runtime {name!r}", expected="one of " + ", ".join(RUNTIMES))
    module, _, attribute = RUNTIMES[name].partition(":")
    runtime: Runtime = getattr(import_module(module), attribute)()
    return runtime
