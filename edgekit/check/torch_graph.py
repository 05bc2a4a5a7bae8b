"""What a PyTorch program or a TorchScript file holds, for `check`: its ATen operators and its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgekit.check.survey import OpUse, Surveyed, merged
from edgekit.sources.base import SourceOptions

__all__ = ["survey_program", "survey_script"]

_ELEMENTS = {"float64": "double", "float32": "float"}
#: What PyTorch's graphs are written in beside ATen: sizes, tuples, constants.
_GLUE = ("prim", "_operator", "builtin_function_or_method", "torch", "math")


def survey_program(path: Path, options: SourceOptions, opset: int) -> Surveyed:  # noqa: ARG001
    """Read a `torch.export` program."""
    from edgekit.sources.torch import TorchExportSource

    source = TorchExportSource(path, options)
    program = source.program
    ops = list(_program_uses(program))
    after = {op.name for op in _program_uses(program.run_decompositions())}
    apart = tuple(sorted(after - {op.name for op in ops}))
    ops = [msgspec.structs.replace(op, function=op.name not in after) for op in ops]
    weights = [*program.state_dict.values(), *program.constants.values()]
    return _surveyed(source, ops, [w for w in weights if hasattr(w, "numel")], apart)


def survey_script(path: Path, options: SourceOptions, opset: int) -> Surveyed:  # noqa: ARG001
    """Read a TorchScript file."""
    from edgekit.sources.torch import TorchScriptSource

    source = TorchScriptSource(path, options)
    ops = [op for node in _all_nodes(source.module.inlined_graph) if (op := _script_use(node)) is not None]
    return _surveyed(source, ops, [*source.module.parameters(), *source.module.buffers()])


def _surveyed(
    source: Any, ops: Iterable[OpUse], weights: Iterable[Any], decomposed: tuple[str, ...] = ()
) -> Surveyed:
    found, held = merged(ops), list(weights)
    return Surveyed(
        dialect="aten",
        inputs=source.inputs,
        outputs=source.outputs,
        ops=found,
        parameters=sum(int(w.numel()) for w in held),
        parameter_bytes=sum(int(w.numel()) * w.element_size() for w in held),
        transposes=sum(op.count for op in found if op.name in ("permute", "transpose", "t")),
        decomposed=decomposed,
        notes=source.notes,
    )


def _program_uses(program: Any) -> Iterator[OpUse]:
    for name, module in program.graph_module.named_modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            if node.op == "call_function":
                use = _named(str(node.target), getattr(node.meta.get("val"), "dtype", ""), inside=bool(name))
                if use is not None:
                    yield use


def _all_nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _all_nodes(inner)


def _script_use(node: Any) -> OpUse | None:
    return _named(str(node.kind()), "", inside=False)


def _named(target: str, dtype: object, *, inside: bool) -> OpUse | None:
    """Return the use of `aten.relu.default` or `aten::relu`; None of what is no operator of tensors."""
    element = str(dtype).removeprefix("torch.")
    domain, _, rest = target.replace("::", ".", 1).partition(".")
    if domain in _GLUE or target.startswith("<"):
        return None
    name = rest.partition(".")[0] if domain == "aten" else f"{domain}:{rest or target}"
    return OpUse(name=name, form=_ELEMENTS.get(element, element), inside="a branch" if inside else "")
