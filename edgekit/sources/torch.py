"""PyTorch: `torch.export` programs (.pt2) and TorchScript (.pt), each run by torch itself.

TorchScript: `torch.jit.load` unpickles by a reader of its own in C++, which makes only tensors, containers and
classes defined by the TorchScript in the file; no pickle in it can call Python. That TorchScript, though, may write
files, with `torch.save` and `torch.from_file`, when it is run and, in `__setstate__`, when it is loaded.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ConversionError, InvalidFileError, UsageError
from edgekit.sources.base import Source, SourceOptions, first_line
from edgekit.sources.pickles import Archive, only_weights
from edgekit.sources.torch_program import check_program, is_compiled
from edgekit.tensors import DTYPES, TensorSpec

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "TorchExportSource",
    "TorchScriptSource",
    "example",
    "load_program",
    "load_script",
    "program_arguments",
]

_EVAL = "Call model.eval() before you export it."
#: Operators that act otherwise in training, and the number of the argument that says so.
_TRAINING = {
    "aten.batch_norm": 5,
    "aten.dropout": 2,
    "aten.feature_dropout": 2,
    "aten.alpha_dropout": 2,
    "aten.native_dropout": 2,
    "aten.rrelu": 3,
    "aten.native_batch_norm": 5,
    "aten._native_batch_norm_legit": 5,
    "aten._native_batch_norm_legit_functional": 5,
}
_RANDOM = re.compile(r"aten\.(rand\w*|randn\w*|randint\w*|bernoulli\w*|multinomial|normal\w*)(\.|$)")
#: TorchScript that writes files; whole words anywhere in its code, whose only other words are the model's own.
_WRITES = re.compile(rb"\b(save|from_file)\b")


def load_program(path: Path, *, trusted: bool) -> Any:
    """Return the ExportedProgram of a .pt2 file.

    `torch.export.load` is not called: where the archive does not please it, it falls back to an older format, and to
    unrestricted unpickling. `load_pt2` is what it calls first.

    Args:
        path: The file.
        trusted: Whether code in the file may run.

    Raises:
        InvalidFileError: It is damaged, may run code, or holds no program.
    """
    from torch.export.pt2_archive._package import load_pt2

    archive = Archive(path)
    if is_compiled(archive):
        raise InvalidFileError(
            f"{path.name} holds machine code made by AOTInductor",
            hint="Save the program with torch.export.save.",
        )
    if not trusted:
        check_program(archive)
    try:
        with nullcontext() if trusted else only_weights():
            programs = load_pt2(str(path)).exported_programs
    except Exception as error:  # torch raises what it likes
        raise InvalidFileError(f"torch cannot read {path.name}: {first_line(error)}") from error
    program = programs.get("model") or next(iter(programs.values()), None)
    if program is None or len(programs) > 1:
        raise InvalidFileError(f"{path.name} is to hold one program", got=sorted(programs))
    if not trusted:
        program._guards_code = []  # noqa: SLF001  # Python, and run by program.module(); it only refuses inputs
    return program


class TorchExportSource(Source):
    """A `torch.export` program, under the graph's own input names; outputs are `output_0`, `output_1`, ….

    A size is -1 where the program declares a dynamic dimension.
    """

    packages = ("torch",)
    environment = "torch"
    heeds = ("trust_pickle",)

    def __init__(self, path: Path, options: SourceOptions) -> None:
        import torch

        torch.set_num_threads(1)  # the same sums in the same order, whoever else works on this machine
        self.program = load_program(path, trusted=options.trust_pickle)
        _refuse_training(path.name, self.program)
        signature = self.program.graph_signature
        values = {node.name: node.meta.get("val") for node in self.program.graph.nodes}
        self.inputs = tuple(
            _spec(name, values[name], path.name) for name in _names(signature.user_inputs, path)
        )
        returned = _names(signature.user_outputs, path)
        self.outputs = tuple(_spec(f"output_{i}", values[name], path.name) for i, name in enumerate(returned))
        self.notes = tuple(
            f"the model draws random numbers ({name}): its answers differ from run to run"
            for name in _random_operators(self.program)
        )
        self._module = self.program.module()

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the program's answers."""
        import torch

        tensors = [torch.from_numpy(feed[spec.name].copy()) for spec in self.inputs]
        args, kwargs = program_arguments(self.program, tensors)
        with torch.inference_mode():
            answers = torch.utils._pytree.tree_leaves(self._module(*args, **kwargs))  # noqa: SLF001  # no public one
        return {spec.name: answer.numpy() for spec, answer in zip(self.outputs, answers, strict=True)}


def program_arguments(program: Any, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a program's inputs, in the order of its graph, as the arguments that its module is called with."""
    from torch.utils import _pytree

    args, kwargs = _pytree.tree_unflatten(list(tensors), program.call_spec.in_spec)
    return args, kwargs


def _names(values: Sequence[Any], path: Path) -> list[str]:
    """Return the names of a program's inputs or outputs, all of which must be tensors."""
    for value in values:
        if not isinstance(value, str):
            raise ConversionError(
                f"{path.name}: an input or output is a constant of Python, {value!r}",
                expected="tensors only",
                hint="Export a module that takes and returns nothing but tensors.",
            )
    return list(values)


def _spec(name: str, value: Any, file: str) -> TensorSpec:
    dtype = str(getattr(value, "dtype", "none")).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ConversionError(
            f"{file}: {name} is of the type {dtype}", expected="one of " + ", ".join(DTYPES)
        )
    return TensorSpec(
        name=name, dtype=dtype, shape=tuple(size if type(size) is int else -1 for size in value.shape)
    )


def _operators(program: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """Return a program's operators, `aten.relu.default`, with their arguments; those of its branches too."""
    return [
        (str(node.target), node.args)
        for module in program.graph_module.modules()
        for node in getattr(getattr(module, "graph", None), "nodes", ())
        if node.op == "call_function"
    ]


def _refuse_training(name: str, program: Any) -> None:
    """Refuse a program that was exported in training mode, or that changes itself when it is run."""
    for operator, args in _operators(program):
        number = _TRAINING.get(operator.rpartition(".")[0])
        if number is not None and len(args) > number and args[number] is True:
            raise ConversionError(f"{name} was exported in training mode: {operator} would train", hint=_EVAL)
    for buffer in _changed_buffers(program):
        raise ConversionError(f"{name} changes its own buffer {buffer!r} when it is run", hint=_EVAL)


def _changed_buffers(program: Any) -> list[str]:
    """Return the buffers that a program writes, in its signature or by operators that work in place."""
    signature = program.graph_signature
    changed = set(signature.buffers_to_mutate.values())
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable and node.args:
            buffer = signature.inputs_to_buffers.get(_origin(node.args[0]).name)
            changed |= {buffer} if buffer else set()
    return sorted(changed)


def _origin(node: Any) -> Any:
    """Return what a view is a view of, or the node itself."""
    while node.op == "call_function":
        returned = getattr(getattr(node.target, "_schema", None), "returns", ())
        if not (returned and returned[0].alias_info and node.args and hasattr(node.args[0], "op")):
            break
        node = node.args[0]
    return node


def _random_operators(program: Any) -> list[str]:
    return sorted({name for name, _ in _operators(program) if _RANDOM.match(name)})


def load_script(path: Path, *, trusted: bool) -> Any:
    """Return the ScriptModule of a TorchScript file, in evaluation mode, on the CPU.

    Raises:
        InvalidFileError: It is damaged, or its code may write files.
    """
    import torch

    archive = Archive(path)
    for name in archive.names if not trusted else ():
        found = (
            _WRITES.search(archive.read(name)) if name.startswith("code/") and name.endswith(".py") else None
        )
        if found:
            raise InvalidFileError(
                f"{path.name}: {name} may write files when it is read or run: it says {found[0].decode()!r}",
                hint="Only if you trust whoever made the file, give --trust-pickle.",
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is; the files stay
            return torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as error:  # torch raises what it likes
        raise InvalidFileError(f"torch cannot read {path.name}: {first_line(error)}") from error


class TorchScriptSource(Source):
    """TorchScript, whose inputs are `input_0`, `input_1`, … and whose outputs are `output_0`, ….

    The file declares neither shapes nor types: shapes come from the user, and of float32 and int64 the first type
    with which the model runs is taken. A size of an output is -1 where it follows a free size of an input.
    """

    packages = ("torch",)
    environment = "torch"
    heeds = ("trust_pickle", "input_shapes")

    def __init__(self, path: Path, options: SourceOptions) -> None:
        import torch

        torch.set_num_threads(1)
        self.module = load_script(path, trusted=options.trust_pickle)
        shapes = _declared(self.module, options.input_shapes, path.name)
        self.inputs, small = _typed(self.module, shapes, path.name)
        large = _answers(self.module, self.inputs, 3)
        self.outputs = tuple(
            TensorSpec(
                name=f"output_{i}",
                dtype=_dtype(a),
                shape=tuple(m if m == n else -1 for m, n in zip(a.shape, b.shape, strict=True)),
            )
            for i, (a, b) in enumerate(zip(small, large, strict=True))
        )

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the module's answers."""
        import torch

        tensors = [torch.from_numpy(feed[spec.name].copy()) for spec in self.inputs]
        with torch.inference_mode():
            answers = _leaves(self.module(*tensors))
        return {spec.name: answer.numpy() for spec, answer in zip(self.outputs, answers, strict=True)}


def example(specs: Sequence[TensorSpec], size: int = 2) -> tuple[Any, ...]:
    """Return tensors of ones that fit inputs, with `size` for every free size."""
    import torch

    return tuple(
        torch.ones([size if n == -1 else n for n in spec.shape], dtype=getattr(torch, spec.dtype))
        for spec in specs
    )


def _declared(module: Any, shapes: Mapping[str, tuple[int, ...]], file: str) -> list[tuple[int, ...]]:
    """Return the shape of each argument of `forward`, from the user or from the graph.

    Raises:
        UsageError: A shape is missing, or is given for no input.
        ConversionError: An argument is no tensor.
    """
    arguments = module.forward.schema.arguments[1:]
    types = [value.type() for value in list(module.graph.inputs())[1:]]
    for argument in arguments:
        if str(argument.type) != "Tensor" and not argument.has_default_value():
            raise ConversionError(
                f"{file}: the argument {argument.name!r} of forward is no tensor but {argument.type}"
            )
    tensors = [t for a, t in zip(arguments, types, strict=True) if str(a.type) == "Tensor"]
    names = [f"input_{i}" for i in range(len(tensors))]
    for name in shapes:
        if name not in names:
            raise UsageError(f"--input-shape: the model has no input {name!r}", expected=", ".join(names))
    found = [shapes.get(name) or _size_of(type_) for name, type_ in zip(names, tensors, strict=True)]
    for name, shape in zip(names, found, strict=True):
        if shape is None:
            raise UsageError(
                f"{file} does not say the shape of its input {name}",
                hint=f"Give --input-shape {name}=-1,3,224,224, say: batch first, -1 where any size will do.",
            )
    return [tuple(shape) for shape in found if shape is not None]


def _size_of(type_: Any) -> tuple[int, ...] | None:
    sizes = type_.sizes() if type_.kind() == "TensorType" else None
    return tuple(sizes) if sizes and all(isinstance(size, int) for size in sizes) else None


def _typed(
    module: Any, shapes: Sequence[tuple[int, ...]], file: str
) -> tuple[tuple[TensorSpec, ...], list[Any]]:
    """Return the inputs with the first type that the model runs with, and what it answers then."""
    errors = []
    for dtype in ("float32", "int64"):
        specs = tuple(
            TensorSpec(name=f"input_{i}", dtype=dtype, shape=shape) for i, shape in enumerate(shapes)
        )
        try:
            return specs, _answers(module, specs, 2)
        except RuntimeError as error:
            errors.append(str(error).strip().splitlines()[-1][:200])
    raise ConversionError(
        f"{file} does not run on inputs of these shapes: {errors[0]}",
        got=", ".join(str(list(shape)) for shape in shapes),
        hint="Correct --input-shape.",
    )


def _answers(module: Any, specs: Sequence[TensorSpec], size: int) -> list[Any]:
    import torch

    with torch.inference_mode():
        return _leaves(module(*example(specs, size)))


def _leaves(answer: Any) -> list[Any]:
    """Return the tensors of an answer: one, or a tuple, list or dict of them."""
    import torch

    if isinstance(answer, torch.Tensor):
        return [answer]
    if isinstance(answer, (tuple, list)):
        return [leaf for item in answer for leaf in _leaves(item)]
    if isinstance(answer, dict):
        return [leaf for item in answer.values() for leaf in _leaves(item)]
    raise ConversionError(f"the model returns {type(answer).__name__}", expected="tensors only")


def _dtype(value: Any) -> str:
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ConversionError(f"the model returns {dtype}", expected="one of " + ", ".join(DTYPES))
    return dtype
