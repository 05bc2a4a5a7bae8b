"""What a survey finds in a source: the data that `check` decides on. A worker fills it; nothing is converted."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from edgekit.tensors import TensorSpec

__all__ = ["OpUse", "Surveyed", "merged"]


class OpUse(msgspec.Struct, frozen=True, omit_defaults=True):
    """One kind of operator in one form, and how often the model has it.

    Attributes:
        name: As its own format names it; a domain other than the format's stands in front, with a colon.
        form: What else decides whether a reader takes it: an element type, a mode.
        since: Version of the operator, as it is written for the target; 0 where operators have no versions.
        inside: The branch or loop that it stands in: `If`, `Loop`, …; empty for the main graph.
        types: Type constraint of the operator's schema to the types it has here; ONNX only.
        computed: Axes, sizes or the like come in, behind its first input, that are no constants.
        free_rank: Nobody knows how many dimensions its first input has.
        lowered: It is written for an older opset than the model's own.
        function: It is defined by other operators of its format, so that who lacks it has it all the same.
        count: How many of it there are.
    """

    name: str
    form: str = ""
    since: int = 0
    inside: str = ""
    types: dict[str, str] = {}
    computed: bool = False
    free_rank: bool = False
    lowered: bool = False
    function: bool = False
    count: int = 1


class Surveyed(msgspec.Struct, frozen=True):
    """A source as it was read.

    Attributes:
        dialect: Whose operators these are: `onnx`, `tflite`, `tensorflow`, `aten`, `sklearn`; empty where they
            were not read.
        inputs: Canonical specs.
        outputs: Canonical specs.
        ops: Its operators, each kind and form once, as they are written for the target.
        opset: Version of ONNX's own operators that the model is written for; 0 elsewhere.
        ir: IR version, of ONNX; 0 elsewhere.
        lowering: Why the opset cannot be lowered to the target's; empty where it can, or need not.
        parameters: How many weights it has.
        parameter_bytes: Size of the weights as they are stored.
        decomposed: Operators that come only of taking others apart, of PyTorch.
        quantized: Precision of a source that is quantized already; empty for a float one.
        free_inside: Values in the middle with sizes that are known at run time only.
        transposes: Transpositions that the source has itself.
        notes: What a user should know of how it was read.
    """

    dialect: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ops: tuple[OpUse, ...]
    opset: int = 0
    ir: int = 0
    lowering: str = ""
    parameters: int = 0
    parameter_bytes: int = 0
    decomposed: tuple[str, ...] = ()
    quantized: str = ""
    free_inside: int = 0
    transposes: int = 0
    notes: tuple[str, ...] = ()


def merged(ops: Iterable[OpUse]) -> tuple[OpUse, ...]:
    """Return the operators with equal ones counted together, sorted by name."""
    kinds: dict[bytes, OpUse] = {}
    for op in ops:
        key = msgspec.json.encode(msgspec.structs.replace(op, count=1), order="sorted")
        seen = kinds.get(key)
        kinds[key] = op if seen is None else msgspec.structs.replace(seen, count=seen.count + op.count)
    return tuple(sorted(kinds.values(), key=lambda op: (op.name, op.since, op.form, op.inside)))
