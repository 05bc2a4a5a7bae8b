"""A TFLite file as other libraries' readers need it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["readable_copy"]

_LAST_OLD_CODE = 127


def readable_copy(path: Path, folder: Path) -> Path:
    """Return a copy of a TFLite file for the readers of tf2onnx and OpenVINO.

    The main graph's tensors are called `t0`, `t1`, … by number: tf2onnx makes names of the ones it finds, which
    may clash or loop. Operators carry the old one-byte code too: the LiteRT quantizer leaves it out, and those
    readers then take every new operator for an addition, code 0.

    Args:
        path: A TFLite file.
        folder: Where the copy goes.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    for place, subgraph in enumerate(model.subgraphs):
        for number, tensor in enumerate(subgraph.tensors):
            tensor.name = (f"t{number}" if place == 0 else f"s{place}t{number}").encode()
    for code in model.operatorCodes:
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
        code.deprecatedBuiltinCode = min(code.builtinCode, _LAST_OLD_CODE)
    copy = folder / "readable.tflite"
    copy.write_bytes(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))
    return copy
